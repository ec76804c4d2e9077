"""A program under a test's control: it makes the calls that it is told, and says what came of each.

A line of JSON in, [function, arguments...]; a line out: the return value, errno, and when the
call began and ended. It has one thread, can fork, and no library between it and the calls: the
tests are about the calls themselves.
"""

import ctypes
import json
import os
import signal
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class Flock(ctypes.Structure):
    _fields_ = [("type", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_int64),
                ("len", ctypes.c_int64), ("pid", ctypes.c_int)]


def call(function, *args):
    """Calls the C library; raises what errno says."""
    result = function(*args)
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "")
    return result


def path(p):
    return os.fsencode(p)


def fcntl(fd, cmd, kind, start, length):
    lock = Flock(kind, os.SEEK_SET, start, length, 0)
    call(libc.fcntl, fd, cmd, ctypes.byref(lock))
    return [lock.type, lock.start, lock.len, lock.pid]


def read(fd):
    """All of the file, through this very descriptor."""
    text, part = b"", b"x"
    while part:
        part = os.pread(fd, 1 << 16, len(text))
        text += part
    return text.decode()


def fork():
    """A child with all descriptors, that does nothing till it is killed."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    return child


def kill_child(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def on_signal(number, restart):
    signal.signal(number, lambda *_: None)
    signal.siginterrupt(number, not restart)


FUNCTIONS = {
    "open": lambda p, flags, mode: call(libc.open, path(p), flags | os.O_CLOEXEC, mode),
    "close": lambda fd: call(libc.close, fd),
    "dup": lambda fd: call(libc.dup, fd),
    "flock": lambda fd, how: call(libc.flock, fd, how),
    "fcntl": fcntl,
    "write": lambda fd, text: call(libc.write, fd, text.encode(), len(text.encode())),
    "pwritetext": lambda fd, text, at: os.pwrite(fd, text.encode(), at),
    "read": read,
    "ftruncate": lambda fd, n: call(libc.ftruncate, fd, ctypes.c_long(n)),
    "fsync": lambda fd: call(libc.fsync, fd),
    "mmap": lambda fd, prot, flags: call(libc.mmap, None, 4096, prot, flags, fd, 0) and 0,
    "unlink": lambda p: call(libc.unlink, path(p)),
    "fork": fork,
    "kill": kill_child,
    "signal": on_signal,
    "setuid": os.setuid,
}


def main():
    for line in sys.stdin:
        function, *args = json.loads(line)
        error, value = 0, 0
        began = time.monotonic_ns()
        try:
            value = FUNCTIONS[function](*args)
        except OSError as e:
            error = e.errno
        ended = time.monotonic_ns()
        print(json.dumps({"value": value, "errno": error, "began": began, "ended": ended}), flush=True)


main()
