package fs

import (
	"context"
	"time"
)

// caller is the context of one request's wait for a lock: it ends when the
// kernel interrupts the request. It costs no goroutine. go-fuse uses the
// channel again for later requests, so it must not be kept beyond the call.
type caller <-chan struct{}

var _ context.Context = caller(nil)

func (c caller) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c caller) Done() <-chan struct{}       { return c }
func (c caller) Value(any) any               { return nil }

func (c caller) Err() error {
	select {
	case <-c:
		return context.Canceled
	default:
		return nil
	}
}
