package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/config"
	"lockfs/fs/locks"
)

// Open implements fuse.RawFileSystem. An open for writing first takes the
// write lock, as the policy for the name says. Then it looks whether the name still
// is what the kernel thinks; else the kernel is to look it up again.
func (f *FileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, name, err := f.nodes.find(in.NodeId)
	if err == nil {
		err = f.open(cancel, n, name, in, out)
	}
	return f.status("open", name, err)
}

func (f *FileSystem) open(interrupt <-chan struct{}, n *node, name string, in *fuse.OpenIn, out *fuse.OpenOut) error {
	if n.blind != nil {
		return f.openBlindly(interrupt, n, name, in)
	}
	ctx, stop := newCaller(interrupt)
	defer stop()
	if err := f.waitToOpen(ctx, n, name, in); err != nil {
		return err
	}
	told := f.takeRetry(in.Pid, name)
	for {
		err := f.openOnce(interrupt, ctx, told, n, name, in, out)
		switch {
		case !unreachable(err):
			return err
		case in.Flags&syscall.O_NONBLOCK != 0:
			return lockErrno(err)
		}
		// The store went away when the file was to be truncated. The lock was let go again, and it begins anew.
		f.reach.out()
		if told != nil {
			told = &retry{name: name, doubted: told.doubted} // its handle is used up
		}
		select {
		case <-time.After(probePause): // what answers may still refuse to write
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := f.waitToOpen(ctx, n, name, in); err != nil {
			return err
		}
	}
}

// waitToOpen waits for a store that is known to be out of reach, before the lock is taken, lest that be lost meanwhile.
func (f *FileSystem) waitToOpen(ctx context.Context, n *node, name string, in *fuse.OpenIn) error {
	if !f.reach.isOut() {
		return nil
	}
	if _, err := f.statToOpen(ctx, name, in.Flags&syscall.O_NONBLOCK == 0); err != nil && !stale(n, backends.Info{}, err) {
		return err
	}
	return nil
}

// openOnce is open but for the waiting for the store. Where it fails it leaves nothing.
func (f *FileSystem) openOnce(interrupt <-chan struct{}, ctx context.Context, told *retry, n *node, name string, in *fuse.OpenIn, out *fuse.OpenOut) error {
	h, bare, err := f.openLocked(ctx, told, name, in)
	if err != nil {
		return err
	}
	info, err := f.whatIsOpened(interrupt, n, name, in, told)
	old := stale(n, info, err)
	switch {
	case told == nil && !n.private && (old || bare && in.Pid != 0):
		again := retry{name: name, handle: h, bare: bare}
		if err == nil {
			again.info = &info
		}
		return f.lookAgain(in.Pid, again)
	case told != nil && told.doubted:
		err = f.judge(in, name, info, err, old)
	case old:
		info, err = f.nodes.lastTold(n.id), nil // see retry.go
	}
	if err == nil {
		h.file = f.files.open(info)
		f.nodes.share(n, h.file)
		err = f.opened(h, bare, in.Flags&syscall.O_TRUNC != 0)
	}
	if err != nil {
		f.discard(h)
		return err
	}
	out.Fh, out.OpenFlags = h.id, openFlags
	return nil
}

// judge decides about an open of which LOOKUP could not ask what the name is.
func (f *FileSystem) judge(in *fuse.OpenIn, name string, info backends.Info, err error, old bool) error {
	switch {
	case old:
		return lockErrno(fmt.Errorf("open %q: while the back end could not be asked it was removed or replaced: %w", name, backends.ErrUnavailable))
	case err == nil && !permits(&in.InHeader, info, access(in.Flags)):
		return syscall.EACCES
	}
	return err
}

// whatIsOpened says what the name is now. Where nothing was waited for, the thread's GETATTR has just asked.
func (f *FileSystem) whatIsOpened(interrupt <-chan struct{}, n *node, name string, in *fuse.OpenIn, told *retry) (backends.Info, error) {
	n.wrote.Store(writes(in.Flags))
	if info, ok := f.nodes.looks.take(in.Pid, n, false); ok && told == nil && !writes(in.Flags) {
		return info, nil
	}
	ctx, stop := newCallerOfStore(interrupt)
	defer stop()
	return f.statToOpen(ctx, name, in.Flags&syscall.O_NONBLOCK == 0)
}

// openLocked returns a handle that has what its open has to lock, but no file yet.
func (f *FileSystem) openLocked(ctx context.Context, told *retry, name string, in *fuse.OpenIn) (*handle, bool, error) {
	if told != nil && told.handle != nil {
		return told.handle, told.bare, nil
	}
	h := f.newHandle(name, in.Flags, in.Pid)
	bare, err := f.lockOnOpen(ctx, h, !h.nonblock())
	if err != nil {
		f.discard(h)
		return nil, false, err
	}
	return h, bare, nil
}

// openFlags: without the page cache, for it would hide what another node
// wrote. It also leaves no shared writable mmap.
const openFlags = fuse.FOPEN_DIRECT_IO

// newHandle makes a handle, without its file, that nobody knows yet: opened or discard ends this state.
func (f *FileSystem) newHandle(name string, flags, thread uint32) *handle {
	h := &handle{id: f.handles.next(), name: name, writable: writes(flags)}
	h.flags.Store(flags)
	if h.writable {
		h.pid = processOf(thread)
	}
	return h
}

// writes reports whether an open with these flags is one for writing; O_TRUNC writes by itself.
func writes(flags uint32) bool {
	return flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0
}

// lockOnOpen takes the write lock for an open for writing, where the policy
// wants that. bare: the open is let through without it, because an explicit
// call can be expected to follow. On an error nothing is held.
func (f *FileSystem) lockOnOpen(ctx context.Context, h *handle, wait bool) (bare bool, err error) {
	policy := f.config.For(h.name).LockOnOpen
	if !h.writable || policy == config.LockNever {
		return false, nil
	}
	r := h.whole()
	r.Wait = wait
	if policy == config.LockAuto {
		r.YieldTo = yieldTo(h.flags.Load())
	}
	err = f.table.Lock(ctx, r)
	switch {
	case errors.Is(err, backends.ErrYield):
		return true, nil
	case err != nil && !wait:
		return false, lockErrno(fmt.Errorf("open %q: %w", h.name, err))
	case err != nil:
		return false, fmt.Errorf("open %q: %w", h.name, err)
	}
	return false, nil
}

// yieldTo says which explicit calls an open gives way to: lock libraries open
// read-write or appending, and give way to any; a plain write only to a holder
// who opened for writing and locked then, as those do who use this lock.
func yieldTo(flags uint32) backends.Hint {
	if flags&syscall.O_ACCMODE == syscall.O_RDWR || flags&syscall.O_APPEND != 0 {
		return backends.ByCall
	}
	return backends.ByCallOnWritable
}

// opened makes the handle known. With the lock (or no need of it) the
// truncation is done before the open returns; a bare handle puts it off.
func (f *FileSystem) opened(h *handle, bare, truncate bool) error {
	switch {
	case bare:
		h.setBare(truncate)
	case truncate:
		if err := h.file.truncate(f.life, f.store, 0); err != nil {
			return fmt.Errorf("truncate %q: %w", h.name, err)
		}
	}
	f.handles.add(h)
	f.guard.opened(h.id, h.file.ino)
	if f.table.Lost(h.id) {
		// The open comes too late: who was to be told of the loss didn't have the descriptor yet.
		f.handles.remove(h.id)
		return fmt.Errorf("open %q: %w", h.name, locks.ErrLost)
	}
	f.debug("open", h, "bare", bare)
	return nil
}

// ready says that data may be written through the handle: a bare one waits for its lock first.
func (f *FileSystem) ready(interrupt <-chan struct{}, h *handle, nonblock bool) error {
	if f.table.Lost(h.id) {
		return syscall.EIO
	}
	if h.isBare() {
		r := h.whole()
		r.Wait = !nonblock
		ctx, stop := newCaller(interrupt)
		defer stop()
		if err := f.table.Lock(ctx, r); err != nil {
			return fmt.Errorf("lock %q for writing: %w", h.name, err)
		}
	}
	return f.settle(h)
}

// settle is called when the handle has the write lock, or is past needing it: it
// carries out the truncation that was put off.
func (f *FileSystem) settle(h *handle) error {
	if !h.settle() {
		return nil
	}
	h.file.work.Lock()
	defer h.file.work.Unlock()
	if !h.settle() {
		return nil // another thread did it
	}
	if err := h.file.truncate(f.life, f.store, 0); err != nil {
		return fmt.Errorf("truncate %q: %w", h.name, err)
	}
	h.truncated()
	return nil
}

// discard gives up a handle that is not to be, and whatever it holds.
func (f *FileSystem) discard(h *handle) {
	f.table.ReleaseHandle(h.name, h.id)
	f.guard.released(h.id)
	if h.file != nil {
		f.files.release(h.file)
	}
}

// whole is a request for what an open for writing takes.
func (h *handle) whole() locks.Request {
	return locks.Request{Name: h.name, Handle: h.id,
		Owner: locks.Owner{Kind: locks.Description, ID: h.id},
		Door:  locks.Open, Lock: wholeWrite, Writable: h.writable, Created: h.created, PID: h.pid}
}
