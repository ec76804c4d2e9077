package fs

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A thread that waits in an open(2), for somebody at the other end of a pipe, is seen in it, by whichever system call it came.
func TestOpeningOf(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "pipe")
	must(t, unix.Mkfifo(fifo, 0o600))
	// The path ends where the memory that may be read does.
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	must(t, err)
	defer func() { must(t, unix.Munmap(mem)) }()
	must(t, unix.Mprotect(mem[page:], unix.PROT_NONE))
	path := mem[page-len(fifo)-1 : page]
	copy(path, fifo)
	at := uintptr(unsafe.Pointer(&path[0]))
	how := unix.OpenHow{Flags: syscall.O_WRONLY | syscall.O_CLOEXEC}
	dir := unix.AT_FDCWD

	calls := map[string][4]uintptr{
		"openat":  {unix.SYS_OPENAT, uintptr(dir), at, uintptr(how.Flags)},
		"openat2": {unix.SYS_OPENAT2, uintptr(dir), at, uintptr(unsafe.Pointer(&how))},
	}
	if runtime.GOARCH == "amd64" {
		calls["open"] = [4]uintptr{sysOpen, at, uintptr(how.Flags)}
	}
	for name, call := range calls {
		thread, fds := make(chan int, 1), make(chan int, 1)
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			thread <- unix.Gettid()
			for {
				fd, _, errno := unix.Syscall6(call[0], call[1], call[2], call[3], unsafe.Sizeof(how), 0, 0)
				if errno != syscall.EINTR {
					fds <- int(fd)
					return
				}
			}
		}()
		id := uint32(<-thread)
		var o opening
		eventually(t, "a thread in "+name, func() bool {
			var ok bool
			o, ok = openingOf(id)
			return ok
		})
		if o.path != fifo || o.flags&^syscall.O_CLOEXEC != syscall.O_WRONLY || !o.ofLock() || !o.endsWith("dir/pipe") || o.endsWith("pip") {
			t.Errorf("%s: %+v", name, o)
		}
		other, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		must(t, err)
		must(t, unix.Close(<-fds))
		must(t, unix.Close(other))
	}
	runtime.KeepAlive(&how)

	for what, o := range map[string]opening{
		"a directory": {flags: syscall.O_DIRECTORY}, "a place": {flags: unix.O_PATH},
	} {
		if o.ofLock() {
			t.Errorf("%s may be a lock file", what)
		}
	}
	if (opening{path: "pipe/"}).endsWith("pipe") || (opening{flags: syscall.O_EXCL}).mustBeNew() || !(opening{flags: syscall.O_CREAT | syscall.O_EXCL}).mustBeNew() {
		t.Error("what an open says is taken for something else")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, ok := openingOf(uint32(unix.Gettid())); ok {
		t.Error("a thread that reads is in an open")
	}
}
