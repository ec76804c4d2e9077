package integration

// pythonLockers are Python's own ways, and the libraries that Debian has.
var pythonLockers = map[string]locker{
	"Python fcntl.flock, open w": {
		hold: py(`import fcntl; f = open(path, "w"); fcntl.flock(f, fcntl.LOCK_EX); held()`),
		try: py(`import fcntl; f = open(path, "w")
try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(9)`), busy: 9, plain: true},
	"Python fcntl.flock, open a+": {
		hold: py(`import fcntl; f = open(path, "a+"); fcntl.flock(f, fcntl.LOCK_EX); held()`),
		try: py(`import fcntl; f = open(path, "a+")
try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(9)`), busy: 9},
	"Python fcntl.lockf": {
		hold: py(`import fcntl; f = open(path, "a+"); fcntl.lockf(f, fcntl.LOCK_EX); held()`),
		try: py(`import fcntl; f = open(path, "a+")
try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError: sys.exit(9)`), busy: 9},
	"filelock": {
		hold: py(`import filelock
with filelock.FileLock(path): held()`),
		try: py(`import filelock
try: filelock.FileLock(path, timeout=0.5).acquire()
except filelock.Timeout: sys.exit(9)`), busy: 9, limit: half},
	"fasteners.InterProcessLock": {
		hold: py(`import fasteners
with fasteners.InterProcessLock(path): held()`),
		try: py(`import fasteners; sys.exit(0 if fasteners.InterProcessLock(path).acquire(timeout=0.5) else 9)`), busy: 9, limit: half},
	"fasteners.InterProcessReaderWriterLock": {
		hold: py(`import fasteners
with fasteners.InterProcessReaderWriterLock(path).write_lock(): held()`),
		try: py(`import fasteners; sys.exit(0 if fasteners.InterProcessReaderWriterLock(path).acquire_read_lock(timeout=0.5) else 9)`), busy: 9, limit: half},
	"portalocker": {
		hold: py(`import portalocker
with portalocker.Lock(path, timeout=25): held()`),
		try: py(`import portalocker
try: portalocker.Lock(path, timeout=0.5).acquire()
except portalocker.exceptions.LockException: sys.exit(9)`), busy: 9, limit: half},
}

func py(body string) []string {
	return []string{python, "-c", `import sys
path = sys.argv[1]
def held():
    print("held", flush=True)
    sys.stdin.read()
` + body, "{}"}
}
