package fs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// interruptGrace is how long a wait goes on after a signal was seen. An open that is
	// about to succeed should succeed: programs expect EINTR from an open that has to wait, not
	// from one that a SIGCHLD happened to meet.
	interruptGrace = 5 * time.Millisecond
	// unwatched is how long a wait goes on before anybody looks for signals: most locks are had by then.
	unwatched = 5 * time.Millisecond
	// unwatchedAtStore is the same for a question to the store: only where that does not answer a signal is to end an open.
	unwatchedAtStore = 100 * time.Millisecond
)

// caller is the context of one request's wait, for a lock or in an open: it ends a moment
// after the kernel interrupted the request. It costs a goroutine, a timer and channels only where
// that takes a while.
type caller struct {
	interrupt <-chan struct{} // go-fuse uses it again for later requests
	unwatched time.Duration
	ended     atomic.Bool
	watch     sync.Once
	over      chan struct{} // closed by stop
	done      chan struct{}
	timer     *time.Timer
}

var _ context.Context = (*caller)(nil)

// newCaller returns the context; stop must be called when the request is answered.
func newCaller(interrupt <-chan struct{}) (ctx *caller, stop func()) {
	c := &caller{interrupt: interrupt, unwatched: unwatched}
	return c, c.stop
}

// newCallerOfStore is newCaller for a question to the store.
func newCallerOfStore(interrupt <-chan struct{}) (ctx *caller, stop func()) {
	c := &caller{interrupt: interrupt, unwatched: unwatchedAtStore}
	return c, c.stop
}

func (c *caller) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *caller) Value(any) any               { return nil }

func (c *caller) Done() <-chan struct{} {
	c.watch.Do(func() {
		c.over, c.done = make(chan struct{}), make(chan struct{})
		c.timer = time.AfterFunc(c.unwatched, c.wait)
	})
	return c.done
}

// stop is for the goroutine that asked for Done, or when nobody has.
func (c *caller) stop() {
	if c.timer == nil {
		return
	}
	close(c.over)
	if c.timer.Stop() {
		c.end()
	}
}

func (c *caller) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return nil
}

func (c *caller) end() {
	c.ended.Store(true)
	close(c.done)
}

func (c *caller) wait() {
	defer c.end()
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
