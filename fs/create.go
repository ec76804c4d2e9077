package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
)

// The kernel sends CREATE for a name that does not exist, and keeps the
// directory locked until the answer. So CREATE tries the lock once. Where it would have
// to wait, the file is there by now: answered with ESTALE, the kernel looks the
// name up again, finds it and sends OPEN, which may wait as long as it likes. A name
// that somebody else created in between (O_CREAT without O_EXCL) goes the same way.
//
// That way is closed to O_EXCL (the file must not exist when the kernel looks again) and
// to an open that has been told already; these wait here, but not for ever.

// createWait bounds a wait in CREATE; then EAGAIN. It takes a lock that is held on
// a name that doesn't exist, by one who unlinked it, to get there.
const createWait = 5 * time.Second

// creation is one CREATE request.
type creation struct {
	in    *fuse.CreateIn
	name  string
	told  *retry // not nil: the kernel has looked again already
	again bool   // it can't be told to look again
	excl  bool
}

// Create implements fuse.RawFileSystem.
func (f *FileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, component string, out *fuse.CreateOut) fuse.Status {
	name, err := f.nodes.child(in.NodeId, component)
	if err != nil {
		return f.status("create", component, err)
	}
	c := creation{in: in, name: name, excl: in.Flags&syscall.O_EXCL != 0, told: f.takeRetry(in.Pid, name)}
	c.again = c.told != nil || in.Pid == 0
	var h *handle
	if c.excl {
		h, err = f.createExclusively(cancel, c)
	} else {
		h, err = f.createOrOpen(cancel, c)
	}
	if err == nil {
		// A bare handle is to have a nodeid of its own: see retry.go.
		last := h.file.last.Load()
		n := f.fillShared(&out.EntryOut, name, h.file.ino, last, h.isBare())
		f.nodes.looks.leaveCreated(in.Pid, n, last.info(h.file.ino))
		out.Fh, out.OpenOut.OpenFlags = h.id, openFlags
	}
	return f.status("create", name, lockErrno(err))
}

func (c creation) info() backends.Info {
	return backends.Info{Mode: syscall.S_IFREG | c.in.Mode&07777}
}

// retry is for when the kernel looks again: by then the name may be gone.
func (c creation) retry(f *FileSystem) retry {
	made := f.owned(&c.in.InHeader, c.info())
	return retry{name: c.name, create: &made}
}

// createOrOpen is O_CREAT alone: never EEXIST.
func (f *FileSystem) createOrOpen(interrupt <-chan struct{}, c creation) (*handle, error) {
	h, bare := c.handle(f)
	info, created, err := f.createOrFind(c)
	if err == nil && !c.locked() {
		bare, err = f.lockOnOpen(f.life, h, false)
		if err != nil && !h.nonblock() && mayWait(err) {
			if c.again {
				bare, err = f.lockBriefly(interrupt, h, func() error { return nil })
			} else {
				again := c.retry(f)
				again.info = &info
				err = f.lookAgain(c.in.Pid, again)
			}
		}
	}
	if err == nil {
		h.file = f.files.open(info)
		err = f.opened(h, bare, !created && c.in.Flags&syscall.O_TRUNC != 0)
	}
	if err != nil {
		f.discard(h)
		return nil, err
	}
	return h, nil
}

// locked reports whether an OPEN in the same call has taken the lock already.
func (c creation) locked() bool { return c.told != nil && c.told.handle != nil }

// handle returns the handle that comes with the lock, or a new one.
func (c creation) handle(f *FileSystem) (h *handle, bare bool) {
	if c.locked() {
		return c.told.handle, c.told.bare
	}
	h = f.newHandle(c.name, c.in.Flags, c.in.Pid)
	h.created = c.excl
	return h, false
}

// mayWait reports whether waiting may help where trying didn't.
func mayWait(err error) bool {
	e := errno(err)
	return e == syscall.EAGAIN || e == syscall.ENOLCK
}

// createOrFind creates the name, or finds what somebody created first.
func (f *FileSystem) createOrFind(c creation) (info backends.Info, created bool, err error) {
	for f.life.Err() == nil {
		info, err = f.store.Create(f.life, c.name, f.owned(&c.in.InHeader, c.info()))
		if !errors.Is(err, backends.ErrExist) {
			return info, err == nil, err
		}
		if !c.again {
			// The kernel opens it then, with all its checks.
			return info, false, f.lookAgain(c.in.Pid, c.retry(f))
		}
		info, err = f.store.Stat(f.life, c.name)
		switch {
		case errors.Is(err, backends.ErrNotExist):
			continue // gone again
		case err != nil:
			return info, false, err
		case info.Mode&syscall.S_IFMT != syscall.S_IFREG:
			return info, false, syscall.ESTALE
		case !permits(&c.in.InHeader, info, access(c.in.Flags)):
			return info, false, syscall.EACCES
		}
		return info, false, nil
	}
	return info, false, f.life.Err()
}

// lockBriefly waits for the lock of an open while the kernel keeps the
// directory locked, until the time is up (EAGAIN), the caller is interrupted, or unless says why not.
func (f *FileSystem) lockBriefly(interrupt <-chan struct{}, h *handle, unless func() error) (bare bool, err error) {
	caller, stop := newCaller(interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(caller, createWait)
	defer cancel()
	locked := make(chan struct{})
	go func() {
		defer close(locked)
		bare, err = f.lockOnOpen(ctx, h, true)
	}()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		select {
		case <-locked:
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("create %q, still locked after %v: %w", h.name, createWait, backends.ErrWouldBlock)
			}
			return bare, err
		case <-time.After(pause):
		}
		if why := unless(); why != nil {
			cancel()
			<-locked
			return false, why
		}
	}
}

// createExclusively is O_CREAT|O_EXCL. It takes the lock before it creates
// the name, so that an interrupted wait leaves no file behind that nobody could create again.
func (f *FileSystem) createExclusively(interrupt <-chan struct{}, c creation) (*handle, error) {
	h, bare := c.handle(f)
	var err error
	if !c.locked() {
		bare, err = f.lockToCreate(interrupt, c, h)
	}
	var info backends.Info
	if err == nil {
		info, err = f.store.Create(f.life, c.name, f.owned(&c.in.InHeader, c.info()))
	}
	if err != nil {
		f.discard(h)
		return nil, err
	}
	h.file = f.files.open(info)
	return h, f.opened(h, bare, false)
}

// lockToCreate takes the lock before the name is created. Who comes too late
// is told so at once, whoever holds the lock; that may be one who is just about to create the name.
func (f *FileSystem) lockToCreate(interrupt <-chan struct{}, c creation, h *handle) (bare bool, err error) {
	bare, err = f.lockOnOpen(f.life, h, false)
	if err == nil || !mayWait(err) {
		return bare, err
	}
	exists := func() error {
		if _, err := f.store.Stat(f.life, c.name); err == nil {
			return syscall.EEXIST
		}
		return nil
	}
	if e := exists(); e != nil {
		return false, e
	}
	if h.nonblock() {
		return false, err
	}
	return f.lockBriefly(interrupt, h, exists)
}
