package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/config"
)

// Open implements fuse.RawFileSystem. It always sees the truth: a name that
// is no longer what the kernel thinks is looked up again. An open for writing
// takes the write lock before it returns, as the policy for the name says.
func (f *FileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, name, err := f.nodes.find(in.NodeId)
	if err == nil {
		err = f.open(cancel, n, name, in, out)
	}
	return f.status("open", name, err)
}

func (f *FileSystem) open(interrupt <-chan struct{}, n *node, name string, in *fuse.OpenIn, out *fuse.OpenOut) error {
	again := f.retries.take(in.Pid, name)
	info, err := f.store.Stat(f.life, name)
	switch {
	case errors.Is(err, backends.ErrNotExist), errors.Is(err, backends.ErrNotDir), err == nil && info.Ino != n.ino:
		return f.lookAgain(in.Pid, name)
	case err != nil:
		return err
	}
	h := f.newHandle(name, info, in.Flags, in.Pid)
	ctx, stop := f.asking(interrupt, !h.nonblock())
	defer stop()
	bare, err := f.lockOnOpen(ctx, h, !h.nonblock())
	if err == nil && bare && !n.private && !again && f.retries.add(in.Pid, name) {
		err = syscall.ESTALE
	}
	if err == nil {
		err = f.opened(h, bare, in.Flags&syscall.O_TRUNC != 0)
	}
	if err != nil {
		f.discard(h)
		return err
	}
	out.Fh, out.OpenFlags = h.id, openFlags
	return nil
}

// openFlags: without the page cache, for it would hide what another node
// wrote. It also leaves no shared writable mmap.
const openFlags = fuse.FOPEN_DIRECT_IO

// newHandle makes a handle that nobody knows yet: opened or discard ends this state.
func (f *FileSystem) newHandle(name string, info backends.Info, flags, thread uint32) *handle {
	h := &handle{id: f.handles.next(), file: f.files.open(info), name: name, writable: writes(flags)}
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
		ctx, stop := f.asking(interrupt, r.Wait)
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
	h.work.Lock()
	defer h.work.Unlock()
	if !h.settle() {
		return nil // another thread did it
	}
	if err := h.file.truncate(f.life, f.store, 0); err != nil {
		return fmt.Errorf("truncate %q: %w", h.name, err)
	}
	h.truncated()
	return nil
}
