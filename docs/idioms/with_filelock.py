# The filelock package, as it is.
from filelock import FileLock

with FileLock("/mnt/locks/index", timeout=10):
    print("only one node is here")
