package holders

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lockfs/fs/ledger"
)

// descriptor is a file descriptor of a process.
type descriptor struct {
	pid, fd int
	ino     uint64
}

// scan returns the descriptors of these processes (nil: of all) that are on the mount and have one of the inodes.
// Processes that end meanwhile, or that this user may not look into, are passed over.
func scan(mount ledger.Mount, inos map[uint64]bool, pids []int) []descriptor {
	if pids == nil {
		pids = processes()
	}
	var found []descriptor
	for _, pid := range pids {
		for _, fd := range numbers(fmt.Sprintf("/proc/%d/fd", pid)) {
			d := descriptor{pid: pid, fd: fd}
			if d.mayBe() && d.matches(mount, inos) {
				found = append(found, d)
			}
		}
	}
	return found
}

func processes() []int { return numbers("/proc") }

// numbers returns the entries of a directory that are numbers.
func numbers(dir string) []int {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1) // what could be read counts
	all := make([]int, 0, len(names))
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// mayBe sorts out sockets, pipes and devices: readlink(2) costs a fraction of
// reading fdinfo. The path itself says little: the process may see another tree than we.
func (d *descriptor) mayBe() bool {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", d.pid, d.fd))
	return err == nil && strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "/dev/")
}

// matches reads what the kernel has in memory of the descriptor, and notes its inode number.
func (d *descriptor) matches(mount ledger.Mount, inos map[uint64]bool) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", d.pid, d.fd))
	if err != nil {
		return false
	}
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
