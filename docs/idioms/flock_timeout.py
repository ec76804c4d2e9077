# The same with a time limit, by flock.
import fcntl, signal

def too_late(signum, frame):
    raise TimeoutError("another node has the lock")

signal.signal(signal.SIGALRM, too_late)
with open("/mnt/locks/checkpoint", "a") as f:
    signal.alarm(10)
    fcntl.flock(f, fcntl.LOCK_EX)
    signal.alarm(0)
    print("only one node is here")
