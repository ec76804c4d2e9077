package redis

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// crew runs requests apart from their callers, who may go at any time. Some
// goroutines stay for the next request, their stacks grown. Its owner closes it.
type crew struct {
	jobs chan func()
	idle atomic.Int32
	stop chan struct{}

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// maxIdle is how many goroutines stay without work.
const maxIdle = 16

func newCrew() *crew { return &crew{jobs: make(chan func()), stop: make(chan struct{})} }

// do runs f; false: the crew is closed.
func (c *crew) do(f func()) bool {
	select {
	case c.jobs <- f:
		return true
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(func() { c.work(f) })
	return true
}

func (c *crew) work(f func()) {
	for {
		f()
		if c.idle.Add(1) > maxIdle {
			c.idle.Add(-1)
			return
		}
		select {
		case f = <-c.jobs:
			c.idle.Add(-1)
		case <-c.stop:
			return
		}
	}
}

// close takes no more work; what runs goes on.
func (c *crew) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.stop)
	}
}

// wait returns when nothing runs any more. The crew is closed.
func (c *crew) wait() { c.wg.Wait() }

// errClosed: the crew takes no work any more.
var errClosed = errors.New("closed")

// detach runs f on the crew and returns what it returns, or early with the
// cause of ctx's end or errClosed when over is closed (nil: never). f then goes on alone.
func detach[T any](ctx context.Context, c *crew, over <-chan struct{}, f func() (T, error)) (T, error) {
	return start(c, over, f).wait(ctx)
}

// detached is a function that runs on the crew, for a caller who may go.
type detached[T any] struct {
	results chan result[T] // has room for the only one
	over    <-chan struct{}
}

type result[T any] struct {
	value T
	err   error
}

func start[T any](c *crew, over <-chan struct{}, f func() (T, error)) *detached[T] {
	d := &detached[T]{results: make(chan result[T], 1), over: over}
	if !c.do(func() {
		value, err := f()
		d.results <- result[T]{value, err}
	}) {
		d.results <- result[T]{err: errClosed}
	}
	return d
}

func (d *detached[T]) decided() bool { return len(d.results) > 0 }

func (d *detached[T]) wait(ctx context.Context) (T, error) {
	var none T
	select {
	case r := <-d.results:
		return r.value, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-d.over:
		return none, errClosed
	}
}
