package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/fs/locks"
)

// kinds is the one place that turns kinds of errors into errno. The first
// kind that matches decides.
var kinds = []struct {
	kind  error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{backends.ErrWouldBlock, syscall.EAGAIN},
	{backends.ErrYield, syscall.EAGAIN},
	{backends.ErrDeadlock, syscall.EDEADLK},
	{backends.ErrExist, syscall.EEXIST},
	{backends.ErrNotExist, syscall.ENOENT},
	{backends.ErrNotDir, syscall.ENOTDIR},
	{backends.ErrIsDir, syscall.EISDIR},
	{backends.ErrNotEmpty, syscall.ENOTEMPTY},
	{backends.ErrTooLarge, syscall.EFBIG},
	{backends.ErrNoSpace, syscall.ENOSPC},
	{backends.ErrCrossDevice, syscall.EXDEV},
	{locks.ErrClosed, syscall.ENOTCONN},
	{locks.ErrLost, syscall.EIO},
	{backends.ErrUnavailable, syscall.EIO},
	{backends.ErrSessionOver, syscall.EIO},
	{backends.ErrRefused, syscall.EIO},
	{backends.ErrForeign, syscall.EIO},
}

// errno returns what a program gets for err. A syscall.Errno stands for itself, but not the network's (ECONNRESET): for a
// program its file is on no network.
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok && !errors.Is(err, backends.ErrUnavailable) {
		return e
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return k.errno
		}
	}
	return syscall.EIO
}

// lockErrno is errno for lock calls and for opens that are not to wait: the
// back end being out of reach is ENOLCK there, which no program takes for 'held'.
func lockErrno(err error) error {
	if errors.Is(err, backends.ErrUnavailable) {
		return syscall.ENOLCK
	}
	return err
}

// status ends a request: the kernel gets the errno. The words behind an EIO
// go no further than this, so they are logged here.
func (f *FileSystem) status(what, name string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	e := errno(err)
	if _, bare := err.(syscall.Errno); e == syscall.EIO && !bare {
		f.log.Warn(what+" failed", "name", name, "error", err)
	}
	return fuse.Status(e)
}
