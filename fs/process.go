package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lockfs/backends"
)

// What /proc knows about the processes that call.

// processOf returns the process of a thread: requests carry the thread's id.
func processOf(thread uint32) uint32 {
	if thread == 0 {
		return 0 // in another pid namespace
	}
	// The cheap way: a pidfd can be had only of a process, which most callers' threads are.
	if fd, err := unix.PidfdOpen(int(thread), 0); err == nil {
		unix.Close(fd)
		return thread
	}
	if id, err := strconv.ParseUint(statusField(thread, "Tgid"), 10, 32); err == nil {
		return uint32(id)
	}
	return thread
}

// statusField returns a line of /proc/ID/status, of a process or a thread; empty where there is none.
func statusField(id uint32, field string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// started is when a process started, in clock ticks since boot; the greatest value where that can't be told.
func started(pid uint32) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		// The command's name, in parentheses, may hold anything; the start is the 20th field after it.
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) >= 20 {
			if ticks, err := strconv.ParseUint(fields[19], 10, 64); err == nil {
				return ticks
			}
		}
	}
	return math.MaxUint64
}

// command is a process's name, for the log.
func command(pid uint32) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return string(bytes.TrimSpace(name))
}

func (f *FileSystem) debugs() bool { return f.log.Enabled(context.Background(), slog.LevelDebug) }

// debug logs what happens to a lock, with the process that opened the handle.
func (f *FileSystem) debug(what string, h *handle, args ...any) {
	if !f.debugs() {
		return
	}
	args = append([]any{"name", h.name, "handle", h.id, "pid", h.pid, "command", command(h.pid)}, args...)
	f.log.Debug(what, args...)
}

// permits reports whether the caller may access the file in the ways of mask
// (fuse.R_OK, W_OK, X_OK), as the kernel would decide. Root may read and write.
func permits(in *fuse.InHeader, info backends.Info, mask uint32) bool {
	var granted uint32
	switch {
	case in.Uid == 0:
		return true
	case in.Uid == info.UID:
		granted = info.Mode >> 6
	case in.Gid == info.GID || slices.Contains(groups(in.Pid), info.GID):
		granted = info.Mode >> 3
	default:
		granted = info.Mode
	}
	return granted&mask == mask
}

// groups returns the supplementary groups of a thread.
func groups(thread uint32) []uint32 {
	var ids []uint32
	for field := range strings.FieldsSeq(statusField(thread, "Groups")) {
		if id, err := strconv.ParseUint(field, 10, 32); err == nil {
			ids = append(ids, uint32(id))
		}
	}
	return ids
}

// access returns what an open with these flags needs.
func access(flags uint32) uint32 {
	var mask uint32
	if mode := flags & syscall.O_ACCMODE; mode != syscall.O_WRONLY {
		mask |= fuse.R_OK
	}
	if writes(flags) {
		mask |= fuse.W_OK
	}
	return mask
}

// alone reports whether the process has one thread and the lock file open,
// and no other process of this machine has it open. It reads /proc/PID/fdinfo, which asks no
// file system (a stat of the descriptors could hang on a dead one); inode numbers are
// random 62-bit numbers, so they tell the file from all others. Of a process that it may not look
// into it assumes the worst, unless that is older and so can't have inherited a descriptor.
func (f *FileSystem) alone(pid uint32, name string) bool {
	if pid == 0 || statusField(pid, "Threads") != "1" {
		return false
	}
	inos := f.handles.inodes(name)
	// What it has closed already is about to be released: worth waiting for.
	if own, err := hasOpen(strconv.FormatUint(uint64(pid), 10), inos); !own || err != nil {
		return false
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, p := range processes {
		id, err := strconv.ParseUint(p.Name(), 10, 32)
		if err != nil || uint32(id) == pid {
			continue
		}
		opens, err := hasOpen(p.Name(), inos)
		if opens || err != nil && started(uint32(id)) >= started(pid) {
			return false
		}
	}
	return true
}

// hasOpen reports whether a process has one of the inodes open. A process
// that has just ended has nothing open.
func hasOpen(pid string, inos []uint64) (bool, error) {
	dir := "/proc/" + pid + "/fdinfo"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false, unlessGone(err)
	}
	for _, fd := range fds {
		data, err := os.ReadFile(dir + "/" + fd.Name())
		if err != nil {
			if unlessGone(err) != nil {
				return false, err
			}
			continue
		}
		for line := range strings.Lines(string(data)) {
			value, ok := strings.CutPrefix(line, "ino:")
			if !ok {
				continue
			}
			ino, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			if err == nil && slices.Contains(inos, ino) {
				return true, nil
			}
		}
	}
	return false, nil
}

// unlessGone returns nil for the errors that a process which has ended gives.
func unlessGone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
