package locks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"lockfs/backends"
)

// promptSession is a memorySession that makes the first attempt in the caller's goroutine.
type promptSession struct{ *memorySession }

var _ backends.Prompt = promptSession{}

// attempt is a request on its way.
type attempt[T any] struct {
	ready    chan struct{} // closed when decided, but for the session's end
	over     chan struct{} // closed when the request has ended, however it did
	cancel   context.CancelFunc
	takeBack func(T, error) // what came of it where the caller has gone

	mu    sync.Mutex
	gone  bool
	ended bool
	value T
	err   error
}

// attempted runs f, waiting for a moment or not at all.
func attempted[T any](f func(ctx context.Context) (T, error), takeBack func(T, error)) *attempt[T] {
	ctx, cancel := context.WithCancel(context.Background())
	p := &attempt[T]{ready: make(chan struct{}), over: make(chan struct{}), cancel: cancel, takeBack: takeBack}
	go func() {
		value, err := f(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.value, p.err, p.ended = value, err, true
		if p.gone {
			takeBack(value, err)
		}
		if !errors.Is(err, backends.ErrSessionOver) {
			close(p.ready)
		}
		close(p.over)
	}()
	select {
	case <-p.over:
	case <-time.After(rand.N(time.Millisecond)): // less than script.start waits
	}
	return p
}

func (p *attempt[T]) Ready() <-chan struct{} { return p.ready }

func (p *attempt[T]) Decided() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

func (p *attempt[T]) Result(ctx context.Context) (T, error) {
	select {
	case <-p.over:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.cancel()
	if !p.ended {
		var none T
		p.gone = true
		return none, fmt.Errorf("%w: %w", backends.ErrGivenUp, context.Cause(ctx))
	}
	return p.value, p.err
}

func (s promptSession) BeginAcquire(name string, r backends.Request) backends.Pending[backends.Claim] {
	return attempted(func(ctx context.Context) (backends.Claim, error) { return s.Acquire(ctx, name, r) },
		func(c backends.Claim, err error) {
			go func() {
				if err == nil {
					s.Change(context.Background(), name, []backends.Change{{ID: c.ID}})
				}
				if r.TakenBack != nil && !errors.Is(err, backends.ErrGivenUp) { // else Acquire calls it
					r.TakenBack()
				}
			}()
		})
}

func (s promptSession) BeginChange(name string, changes []backends.Change) backends.Pending[[]backends.Claim] {
	return attempted(func(ctx context.Context) ([]backends.Claim, error) { return s.Change(ctx, name, changes) },
		func([]backends.Claim, error) {})
}
