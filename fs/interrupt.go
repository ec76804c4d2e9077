package fs

import (
	"context"
	"sync"
	"time"
)

const (
	// interruptGrace is how long a wait goes on after a signal was seen. An open that is
	// about to succeed should succeed: programs expect EINTR from an open that has to wait, not
	// from one that a SIGCHLD happened to meet.
	interruptGrace = 5 * time.Millisecond
	// unwatched is how long a wait goes on before anybody looks for signals: most locks are had by then.
	unwatched = 5 * time.Millisecond
)

// caller is the context of one request's wait for a lock: it ends a moment
// after the kernel interrupted the request. It costs a goroutine only where
// that takes a while.
type caller struct {
	interrupt <-chan struct{} // go-fuse uses it again for later requests
	over      chan struct{}   // closed by stop
	done      chan struct{}
	watch     sync.Once
	timer     *time.Timer
}

var _ context.Context = (*caller)(nil)

// newCaller returns the context; stop must be called when the request is answered.
func newCaller(interrupt <-chan struct{}) (ctx *caller, stop func()) {
	c := &caller{interrupt: interrupt, over: make(chan struct{}), done: make(chan struct{})}
	return c, c.stop
}

func (c *caller) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *caller) Value(any) any               { return nil }

func (c *caller) Done() <-chan struct{} {
	c.watch.Do(func() { c.timer = time.AfterFunc(unwatched, c.wait) })
	return c.done
}

// stop is for the goroutine that asked for Done, or when nobody has.
func (c *caller) stop() {
	close(c.over)
	if c.timer != nil && c.timer.Stop() {
		close(c.done)
	}
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
