package holders

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"lockfs/fs/ledger"
)

// descriptor is a file descriptor of a process.
type descriptor struct {
	pid, fd int
	ino     uint64
	base    string // the last part of its path
}

// scan returns the descriptors of these processes (nil: of all) that are on the mount and have one of the inodes.
// Processes that end meanwhile, or that this user may not look into, are passed over. It is in a hurry: so
// it asks the kernel itself, by directory, rather than package os; and with bases (nil: any) it looks only at those whose path's last
// part is among them, which costs a quarter.
func scan(mount ledger.Mount, inos map[uint64]bool, pids []int, bases map[string]bool) []descriptor {
	s := scanner{bases: bases}
	if pids == nil {
		pids = slices.Clone(s.numbers(unix.AT_FDCWD, "/proc"))
	}
	var found []descriptor
	for _, pid := range pids {
		found = s.process(found, pid, mount, inos)
	}
	return found
}

// scanner has the memory that a scan uses again and again.
type scanner struct {
	bases map[string]bool
	data  [32 << 10]byte
	all   []int
}

// process appends a process's descriptors that match.
func (s *scanner) process(found []descriptor, pid int, mount ledger.Mount, inos map[uint64]bool) []descriptor {
	dir := "/proc/" + strconv.Itoa(pid)
	proc, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return found
	}
	defer unix.Close(proc)
	for _, fd := range s.numbers(proc, "fd") {
		n := strconv.Itoa(fd)
		base, ok := s.mayBe(proc, "fd/"+n)
		if !ok {
			continue
		}
		d := descriptor{pid: pid, fd: fd, base: base}
		if d.shows(s.read(proc, "fdinfo/"+n), mount, inos) {
			found = append(found, d)
		}
	}
	return found
}

// numbers returns the entries of a directory that are numbers, until the next call.
func (s *scanner) numbers(at int, dir string) []int {
	s.all = s.all[:0]
	fd, err := unix.Openat(at, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var names []string
	for {
		n, err := unix.ReadDirent(fd, s.data[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return s.all // what could be read counts
		}
		_, _, names = unix.ParseDirent(s.data[:n], -1, names[:0])
		for _, name := range names {
			if n, err := strconv.Atoi(name); err == nil {
				s.all = append(s.all, n)
			}
		}
	}
}

// mayBe sorts out sockets, pipes and devices: readlink(2) costs a fraction of
// reading fdinfo. The path itself says little: the process may see another tree than we.
func (s *scanner) mayBe(at int, path string) (base string, ok bool) {
	n, err := unix.Readlinkat(at, path, s.data[:])
	link := s.data[:max(n, 0)]
	if err != nil || n <= 0 || link[0] != '/' || bytes.HasPrefix(link, []byte("/dev/")) {
		return "", false
	}
	last := bytes.TrimSuffix(link[bytes.LastIndexByte(link, '/')+1:], []byte(" (deleted)"))
	if s.bases != nil && !s.bases[string(last)] {
		return "", false
	}
	return string(last), true
}

// read returns what a file has, what one read(2) gives of it, until the next call; nil where it can't be read.
func (s *scanner) read(at int, path string) []byte {
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, s.data[:])
		if err != unix.EINTR {
			return s.data[:max(n, 0)]
		}
	}
}

// matches reads what the kernel has in memory of the descriptor, and notes its inode number.
func (d *descriptor) matches(mount ledger.Mount, inos map[uint64]bool) bool {
	var s scanner
	return d.shows(s.read(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/fdinfo/%d", d.pid, d.fd)), mount, inos)
}

// shows is matches, with what was read.
func (d *descriptor) shows(data []byte, mount ledger.Mount, inos map[uint64]bool) bool {
	ino, ok := field(data, "ino:")
	if !ok || !inos[ino] {
		return false
	}
	d.ino = ino
	id, ok := field(data, "mnt_id:")
	// Our own number first: a mount that was detached is in nobody's list.
	return ok && (id == mount.ID || d.sees(id, mount))
}

// sees reports whether, in the process's mount name space, mount id is of the file system of ours.
func (d *descriptor) sees(id uint64, mount ledger.Mount) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", d.pid))
	if err != nil {
		return false
	}
	device := fmt.Sprintf("%d:%d", mount.Major, mount.Minor)
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) > 2 && string(fields[0]) == strconv.FormatUint(id, 10) {
			return string(fields[2]) == device
		}
	}
	return false
}

// field returns the number behind a key of fdinfo.
func field(data []byte, key string) (uint64, bool) {
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte(key)); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// same reports whether two descriptors are of one open file description (kcmp(2)). In doubt they are:
// where the kernel does not tell, rather one process too many is stopped than one too few.
func same(a, b descriptor) bool {
	const kcmpFile = 0
	order, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(a.pid), uintptr(b.pid), kcmpFile, uintptr(a.fd), uintptr(b.fd), 0)
	switch {
	case e == 0:
		return order == 0
	case errors.Is(e, unix.ESRCH), errors.Is(e, unix.EBADF):
		return false // one of the two is gone
	}
	return true
}

// command is a process's name, for the log.
func command(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // may be gone already
	return string(bytes.TrimSpace(name))
}
