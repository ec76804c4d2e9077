package fs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// opening is the open(2) that a thread is in. LOOKUP and GETATTR don't say what they are for; while their answer
// is awaited the thread stands still, and /proc shows in which system call.
type opening struct {
	path  string
	flags uint64
}

// openingOf returns what a thread opens; false: it does something else, or can't be looked at (another pid
// namespace, another user's process where this one isn't root, io_uring).
func openingOf(thread uint32) (o opening, ok bool) {
	if thread == 0 {
		return o, false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", thread))
	if err != nil {
		return o, false
	}
	fields := strings.Fields(string(data)) // the call's number, six arguments, two pointers
	if len(fields) != 9 {
		return o, false // "running", or in no call
	}
	number, err := strconv.Atoi(fields[0])
	if err != nil {
		return o, false
	}
	var at uint64 // of the path
	switch {
	case number == unix.SYS_OPENAT:
		at, o.flags = argument(fields[2]), argument(fields[3])
	case number == unix.SYS_OPENAT2:
		at = argument(fields[2])
		how := memory(thread, argument(fields[3]), 8) // its first field are the flags
		if len(how) < 8 {
			return o, false
		}
		o.flags = binary.NativeEndian.Uint64(how)
	case number == sysOpen && runtime.GOARCH == "amd64":
		at, o.flags = argument(fields[1]), argument(fields[2])
	default:
		return o, false
	}
	text, _, whole := bytes.Cut(memory(thread, at, unix.PathMax), []byte{0})
	o.path = string(text)
	return o, whole
}

// sysOpen is open(2)'s own number, which newer architectures don't have.
const sysOpen = 2

func argument(hex string) uint64 {
	n, _ := strconv.ParseUint(hex, 0, 64) // the kernel wrote it
	return n
}

// memory returns what a thread has at an address: n bytes, or fewer where its memory ends.
func memory(thread uint32, address uint64, n int) []byte {
	buf := make([]byte, n)
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(n)
	// Page by page: of a piece that isn't all there nothing is read.
	var remote []unix.RemoteIovec
	for rest, from := uint64(n), address; rest > 0; {
		page := uint64(os.Getpagesize())
		size := min(rest, page-from%page)
		remote = append(remote, unix.RemoteIovec{Base: uintptr(from), Len: int(size)})
		from, rest = from+size, rest-size
	}
	got, err := unix.ProcessVMReadv(int(thread), local, remote, 0)
	if err != nil {
		return nil
	}
	return buf[:got]
}

// ofLock reports whether it opens what may be a lock file, to read or write.
func (o opening) ofLock() bool {
	return o.flags&(unix.O_PATH|syscall.O_DIRECTORY) == 0
}

func (o opening) creates() bool { return o.flags&syscall.O_CREAT != 0 }

// mustBeNew: O_EXCL.
func (o opening) mustBeNew() bool { return o.creates() && o.flags&syscall.O_EXCL != 0 }

// endsWith reports whether the name's last component is the path's, and so not one of its directories.
func (o opening) endsWith(name string) bool {
	_, last := path.Split(o.path)
	return last != "" && last == path.Base(name)
}
