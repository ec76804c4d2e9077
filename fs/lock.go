package fs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/config"
	"lockfs/fs/device"
	"lockfs/fs/locks"
)

// SetLock implements device.Locker.
func (f *FileSystem) SetLock(call *device.Call, in *fuse.LkIn, wait bool) { f.setLock(call, in, wait) }

// lockCall is what a device.Call can do.
type lockCall interface {
	MayWait()
	OnInterrupt(f func())
	Answer(status fuse.Status)
}

func (f *FileSystem) setLock(call lockCall, in *fuse.LkIn, wait bool) {
	h, err := f.handles.find(in.Fh) // the table knows whether it has lost a lock
	if err != nil {
		call.Answer(f.status("lock", "", err))
		return
	}
	r, err := h.request(in)
	r.Wait = wait
	switch {
	case err != nil:
		call.Answer(f.status("lock", h.name, err))
	case !h.settled() || f.maySkip(h):
		header := in.InHeader
		f.finish(call, h, "lock call", func(ctx context.Context) error { return f.explicit(ctx, h, r, &header) })
	default:
		f.begin(call, h, r)
	}
}

// begin is explicit for a handle that is settled, and goes on without this thread where it has to wait for owners on this node.
func (f *FileSystem) begin(call lockCall, h *handle, r locks.Request) {
	f.debugCall(h, &r)
	if r.Lock.Mode == backends.None {
		f.goOn(call, h, "unlock", f.table.BeginUnlock(r))
		return
	}
	f.goOn(call, h, "lock", f.table.Begin(r, func(err error) {
		if err != nil { // it may be logged, and who decided has other things to do
			go f.answerLock(call, h, "lock", err)
			return
		}
		f.answerLock(call, h, "lock", nil)
	}))
}

func (f *FileSystem) goOn(call lockCall, h *handle, doing string, begun locks.Begun) {
	switch {
	case begun.Rest != nil:
		f.finish(call, h, doing, begun.Rest)
	case begun.Interrupt != nil:
		call.OnInterrupt(func() { time.AfterFunc(interruptGrace, begun.Interrupt) })
	case begun.Err == nil || errors.Is(begun.Err, backends.ErrWouldBlock):
		f.answerLock(call, h, doing, begun.Err)
	default:
		call.MayWait() // for the log
		f.answerLock(call, h, doing, begun.Err)
	}
}

// finish carries out a call that may take its time, and answers it.
func (f *FileSystem) finish(call lockCall, h *handle, doing string, rest func(ctx context.Context) error) {
	call.MayWait()
	interrupt := make(chan struct{})
	call.OnInterrupt(func() { close(interrupt) })
	ctx, stop := newCaller(interrupt)
	defer stop()
	f.answerLock(call, h, doing, rest(ctx))
}

func (f *FileSystem) answerLock(call lockCall, h *handle, doing string, err error) {
	if err != nil {
		err = lockErrno(fmt.Errorf("%s %q: %w", doing, h.name, err))
	}
	call.Answer(f.status("lock", h.name, err))
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
func (f *FileSystem) explicit(ctx context.Context, h *handle, r locks.Request, in *fuse.InHeader) error {
	if f.skips(h, in) {
		return nil
	}
	f.debugCall(h, &r)
	if r.Lock.Mode == backends.None {
		if err := f.table.Unlock(ctx, r); err != nil {
			return err
		}
		h.settle()
		return nil
	}
	if err := f.table.Lock(ctx, r); err != nil {
		return err
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

func (f *FileSystem) debugCall(h *handle, r *locks.Request) {
	if f.debugs() {
		f.debug("lock call", h, "mode", r.Lock.Mode, "first", r.Lock.First, "last", r.Lock.Last, "wait", r.Wait, "caller", r.PID)
	}
}

// maySkip reports whether the lock file's mode has to be looked at.
func (f *FileSystem) maySkip(h *handle) bool {
	return !h.writable && f.config.For(h.name).NoWritePermission == config.NoWriteSkip
}

// skips reports whether the call is to succeed without a lock: policy
// no_write_permission skip, and the caller may not write the lock file. When in doubt it locks.
func (f *FileSystem) skips(h *handle, in *fuse.InHeader) bool {
	if !f.maySkip(h) {
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
