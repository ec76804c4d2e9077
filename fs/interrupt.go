package fs

import (
	"context"
	"sync"
	"time"
)

// interruptGrace is how long a wait goes on after a signal. An open that is
// about to succeed should succeed: programs expect EINTR from an open that has to wait, not
// from one that a SIGCHLD happened to meet.
const interruptGrace = 10 * time.Millisecond

// caller is the context of one request's wait for a lock: it ends a moment
// after the kernel interrupted the request. It costs a goroutine only once somebody
// asks for Done, that is, when there is something to wait for.
type caller struct {
	interrupt <-chan struct{} // go-fuse uses it again for later requests
	over      chan struct{}   // closed by stop
	done      chan struct{}
	watch     sync.Once
}

var _ context.Context = (*caller)(nil)

// newCaller returns the context; stop must be called when the request is answered.
func newCaller(interrupt <-chan struct{}) (ctx *caller, stop func()) {
	c := &caller{interrupt: interrupt, over: make(chan struct{}), done: make(chan struct{})}
	return c, func() { close(c.over) }
}

func (c *caller) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *caller) Value(any) any               { return nil }

func (c *caller) Done() <-chan struct{} {
	c.watch.Do(func() { go c.wait() })
	return c.done
}

func (c *caller) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

func (c *caller) wait() {
	defer close(c.done)
	select {
	case <-c.over:
		return
	case <-c.interrupt:
	}
	grace := time.NewTimer(interruptGrace)
	defer grace.Stop()
	select {
	case <-c.over:
	case <-grace.C:
	}
}

// asking returns the context of a lock call. One that is not to wait runs to
// its end, like any request that the back end's time-out bounds.
func (f *FileSystem) asking(interrupt <-chan struct{}, wait bool) (ctx context.Context, stop func()) {
	if !wait {
		return f.life, func() {}
	}
	return newCaller(interrupt)
}
