package fs

import (
	"context"
	"fmt"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/config"
	"lockfs/fs/locks"
)

// SetLk implements fuse.RawFileSystem: a lock call that is not to wait.
func (f *FileSystem) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.setLock(cancel, in, false)
}

// SetLkw implements fuse.RawFileSystem: a lock call that waits, or an unlock.
func (f *FileSystem) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.setLock(cancel, in, true)
}

func (f *FileSystem) setLock(interrupt <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	h, err := f.alive(in.Fh)
	if err != nil {
		return f.status("lock", "", err)
	}
	r, err := h.request(in)
	if err == nil {
		r.Wait = wait
		ctx, stop := newCaller(interrupt)
		defer stop()
		err = f.explicit(ctx, h, r, in)
	}
	return f.status("lock", h.name, lockErrno(err))
}

// request turns a lock call into the table's terms.
func (h *handle) request(in *fuse.LkIn) (locks.Request, error) {
	r := locks.Request{Name: h.name, Handle: h.id, Writable: h.writable, PID: in.Lk.Pid,
		Door: locks.Fcntl, Owner: locks.Owner{Kind: locks.Process, ID: in.Owner}}
	// 'To the end' is OFFSET_MAX from the kernel; all ones is allowed as well.
	r.Lock.Range = backends.Range{First: in.Lk.Start, Last: min(in.Lk.End, backends.MaxByte)}
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		r.Door, r.Owner = locks.Flock, locks.Owner{Kind: locks.Description, ID: h.id}
		r.Lock.Range = backends.Whole
	}
	switch in.Lk.Typ {
	case syscall.F_RDLCK:
		r.Lock.Mode = backends.Read
	case syscall.F_WRLCK:
		r.Lock.Mode = backends.Write
	case syscall.F_UNLCK:
		r.Lock.Mode = backends.None
	default:
		return r, syscall.EINVAL
	}
	if r.Lock.First > r.Lock.Last {
		return r, syscall.EINVAL
	}
	return r, nil
}

// explicit carries out a flock or fcntl call. The first that succeeds ends
// the handle's bareness, and the write lock brings the truncation that its open put off.
func (f *FileSystem) explicit(ctx context.Context, h *handle, r locks.Request, in *fuse.LkIn) error {
	if f.skips(h, &in.InHeader) {
		return nil
	}
	if f.debugs() {
		f.debug("lock call", h, "mode", r.Lock.Mode, "first", r.Lock.First, "last", r.Lock.Last, "wait", r.Wait, "caller", r.PID)
	}
	if r.Lock.Mode == backends.None {
		if err := f.table.Unlock(ctx, r); err != nil {
			return fmt.Errorf("unlock %q: %w", h.name, err)
		}
		h.settle()
		return nil
	}
	if err := f.table.Lock(ctx, r); err != nil {
		return fmt.Errorf("lock %q: %w", h.name, err)
	}
	if !h.settle() || r.Lock.Mode != backends.Write {
		return nil
	}
	if err := f.settle(h); err != nil {
		// Without it the call fails, so it must not leave the lock.
		r.Lock.Mode = backends.None
		if undo := f.table.Unlock(context.WithoutCancel(ctx), r); undo != nil {
			f.log.Warn("unlock after a failed truncation", "name", h.name, "error", undo)
		}
		return err
	}
	return nil
}

// skips reports whether the call is to succeed without a lock: policy
// no_write_permission skip, and the caller may not write the lock file. When in doubt it locks.
func (f *FileSystem) skips(h *handle, in *fuse.InHeader) bool {
	if h.writable || f.config.For(h.name).NoWritePermission != config.NoWriteSkip {
		return false
	}
	info, err := h.file.stat(f.life, f.store)
	return err == nil && !permits(in, info, fuse.W_OK)
}

// GetLk implements fuse.RawFileSystem: the first lock in the way.
func (f *FileSystem) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h, err := f.alive(in.Fh)
	if err != nil {
		return f.status("test a lock", "", err)
	}
	r, err := h.request(in)
	if err != nil {
		return f.status("test a lock", h.name, err)
	}
	conflict, found, err := f.table.Test(f.life, r)
	if err != nil {
		return f.status("test a lock", h.name, lockErrno(fmt.Errorf("test the lock %q: %w", h.name, err)))
	}
	out.Lk = fuse.FileLock{Typ: syscall.F_UNLCK}
	if found {
		out.Lk = fuse.FileLock{Typ: syscall.F_RDLCK, Start: conflict.Lock.First,
			End: min(conflict.Lock.Last, math.MaxInt64), Pid: conflict.PID}
		if conflict.Lock.Mode == backends.Write {
			out.Lk.Typ = syscall.F_WRLCK
		}
	}
	return fuse.OK
}

// Flush implements fuse.RawFileSystem: a process closed a descriptor, so its classic
// fcntl locks on the file are gone, whichever descriptor they came through.
func (f *FileSystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, err := f.handles.find(in.Fh)
	if err != nil {
		return f.status("close", "", err)
	}
	lost := f.table.Lost(h.id) // the lease may have run out a moment ago: then what is freed here was lost
	f.table.ReleaseProcess(h.name, in.LockOwner)
	f.table.Flushed(h.name, h.id)
	if lost || f.table.Lost(h.id) {
		return fuse.EIO
	}
	return fuse.OK
}

// Release implements fuse.RawFileSystem: the last descriptor of a description
// was closed. What came through the handle and is still there is freed: a process's classic locks have
// been freed by FLUSH by now, so it is what belongs to the description.
//
// By the handle, never by the owner of an OFD lock: that is where the kernel has the description, and the next one may be there, and have
// its lock, before this request has been served.
func (f *FileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h := f.handles.remove(in.Fh)
	if h == nil {
		return
	}
	f.table.ReleaseHandle(h.name, h.id)
	f.guard.released(h.id)
	f.files.release(h.file)
	f.debug("release", h)
}
