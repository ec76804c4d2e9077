package fs

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/fs/locks"
)

// An open is to wait while the store is out of reach. Before OPEN, where nothing is held, come LOOKUP and GETATTR, and a LOOKUP that
// waits keeps the directory locked: whoever wants another name in it would stand in a wait that no signal ends. So
// where the thread is in an open(2), and there alone, these two go *blindly* on:
//
//   - GETATTR, and LOOKUP of a directory that is known here, say what the kernel was told last.
//   - LOOKUP of what is to be opened makes a private nodeid for a file of the caller's that may not exist (node.blind). It
//     is good for one thing: for OPEN to wait on, interruptibly, until the store can be reached.
//   - That OPEN then answers ESTALE, so the kernel repeats the open with everything looked up anew (retry.go): permissions and
//     existence are judged by the truth. Should the store be out of reach again just then, LOOKUP says what was true a moment ago, and
//     OPEN waits once more, and judges (retry.info).
//
// O_EXCL can't go this way: that the name is there would be the answer. All else that asks the store (stat, mkdir, readdir, …)
// fails after the back end's time-out.

// reach knows whether the store can be reached. Once a request has found that it can't, it is asked until it can, by one goroutine:
// those who wait cost nothing, and blind requests need not find out for themselves.
type reach struct {
	store backends.Store
	life  context.Context

	mu    sync.Mutex
	back  chan struct{} // closed when the store answers again; nil where it does, as far as is known
	probe sync.WaitGroup
}

// probePause is between two questions to a store that is out of reach.
const probePause = 100 * time.Millisecond

// isOut reports whether the store is known to be out of reach.
func (r *reach) isOut() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.back != nil
}

// out is called by who has found the store out of reach. The channel is closed when it answers again.
func (r *reach) out() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.back == nil {
		r.back = make(chan struct{})
		r.probe.Go(r.ask)
	}
	return r.back
}

func (r *reach) ask() {
	for r.life.Err() == nil && unreachable(r.try()) {
		select {
		case <-time.After(probePause):
		case <-r.life.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.back)
	r.back = nil
}

func (r *reach) try() error {
	_, err := r.store.Stat(r.life, "")
	return err
}

// close waits for the one who asks. life has ended.
func (r *reach) close() { r.probe.Wait() }

func unreachable(err error) bool { return errors.Is(err, backends.ErrUnavailable) }

// ask runs a question to the store for a LOOKUP or GETATTR. Where that is part of an open(2) a signal ends it, after
// a moment; other calls run to their end.
func (f *FileSystem) ask(interrupt <-chan struct{}, thread uint32, question func(context.Context) error) error {
	ctx, stop := newCallerOfStore(interrupt)
	err := question(ctx)
	stop()
	if errors.Is(err, context.Canceled) && f.life.Err() == nil {
		if _, ok := openingOf(thread); !ok {
			err = question(f.life)
		}
	}
	if unreachable(err) {
		f.reach.out()
	}
	return err
}

// statToOpen asks what a name is that is being opened: with wait it returns when it is known, or ctx has ended.
func (f *FileSystem) statToOpen(ctx context.Context, name string, wait bool) (backends.Info, error) {
	for {
		info, err := f.store.Stat(ctx, name)
		if !unreachable(err) {
			return info, err
		}
		back := f.reach.out()
		if !wait {
			return info, lockErrno(err)
		}
		select {
		case <-back:
		case <-ctx.Done():
			return info, ctx.Err()
		}
		if f.life.Err() != nil {
			return info, locks.ErrClosed
		}
	}
}

// sayAgain answers the LOOKUP of a thread that was told to look again by what was known then; false: nothing was. OPEN can't have it look once more, so it judges
// itself what the name is when the store can be reached.
func (f *FileSystem) sayAgain(told *retry, out *fuse.EntryOut) bool {
	if told.info == nil {
		return false
	}
	f.retries.doubt(told)
	f.fillEntry(out, told.name, *told.info, true)
	return true
}

// lookUpBlindly answers a LOOKUP without the store; false: it may not.
func (f *FileSystem) lookUpBlindly(o opening, in *fuse.InHeader, name string, out *fuse.EntryOut) bool {
	info, known := f.nodes.known(name)
	switch regular := info.Mode&syscall.S_IFMT == syscall.S_IFREG; {
	case known && !regular:
		f.fillEntry(out, name, info, false)
		out.SetEntryTimeout(0)
		out.SetAttrTimeout(0)
		return true
	case !o.mustBeNew() && (known || o.endsWith(name)):
		// The caller's own, so that the kernel finds nothing wrong with it.
		info = backends.Info{Mode: syscall.S_IFREG | 0o600, Nlink: 1, UID: in.Uid, GID: in.Gid}
		n := f.nodes.enterBlind(name, &info, o)
		out.NodeId, out.Generation = n.id, 1
		fillAttr(&out.Attr, info)
		return true
	}
	return false
}

// answerBlindly answers a GETATTR with what the kernel was told last; false: it may not.
func (f *FileSystem) answerBlindly(n *node, in *fuse.GetAttrIn, out *fuse.AttrOut) bool {
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		return false
	}
	if n.blind == nil { // else it can be for nothing but the open
		if o, ok := openingOf(in.Pid); !ok || !o.ofLock() {
			return false
		}
	}
	info := f.nodes.lastTold(n.id)
	if info.Mode == 0 {
		return false // a root that was never asked for
	}
	fillAttr(&out.Attr, info)
	return true
}

// openBlindly waits until the store can be reached, and has the kernel look again. A name that is to be created
// then is locked first, as CREATE can't wait.
func (f *FileSystem) openBlindly(interrupt <-chan struct{}, n *node, name string, in *fuse.OpenIn) error {
	ctx, stop := newCaller(interrupt)
	defer stop()
	info, err := f.statToOpen(ctx, name, in.Flags&syscall.O_NONBLOCK == 0)
	told := retry{name: name}
	switch {
	case err == nil:
		told.info = &info
	case errors.Is(err, backends.ErrNotExist) && n.blind.creates() && f.mayCreate(&in.InHeader, name):
		told.handle, told.bare, err = f.openLocked(ctx, nil, name, in)
		if err != nil {
			return err
		}
	case err != nil && !errors.Is(err, backends.ErrNotExist) && !errors.Is(err, backends.ErrNotDir):
		return err
	}
	return f.lookAgain(in.Pid, told)
}

// mayCreate reports whether the caller may create the name; when in doubt, not.
func (f *FileSystem) mayCreate(in *fuse.InHeader, name string) bool {
	info, err := f.store.Stat(f.life, name[:max(0, strings.LastIndexByte(name, '/'))])
	return err == nil && info.IsDir() && permits(in, info, fuse.W_OK|fuse.X_OK)
}
