// Package lease keeps a lease by the holder's own clock.
//
// A server forgets a session a TTL after it last heard from it. The holder
// can't know when that was, but it was not before the request was sent. So
// the lease counts from the sending, on CLOCK_BOOTTIME, which goes on while
// the machine sleeps, and ends a margin before the TTL does: whoever asks Valid
// and then acts has that margin to act in.
package lease

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends"
)

// Now is the time on CLOCK_BOOTTIME.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Lease is a lease of a fixed length. It is safe for use by many goroutines.
type Lease struct {
	ttl      time.Duration
	deadline atomic.Int64 // on CLOCK_BOOTTIME; 0 when ended
}

// New returns a lease that began with a request sent at sent.
func New(ttl time.Duration, sent time.Duration) *Lease {
	l := &Lease{ttl: ttl}
	l.deadline.Store(int64(sent + l.usable()))
	return l
}

// Margin is how long before the server's deadline the lease ends: a fifth of the TTL.
func (l *Lease) Margin() time.Duration { return l.ttl / 5 }

func (l *Lease) usable() time.Duration { return l.ttl - l.Margin() }

// Interval is how often to renew: so that two renewals may fail before the lease ends.
func (l *Lease) Interval() time.Duration { return l.ttl / 5 }

// Renewed says that the server has answered a renewal sent at sent. A lease
// that has ended stays ended.
func (l *Lease) Renewed(sent time.Duration) {
	next := int64(sent + l.usable())
	for {
		old := l.deadline.Load()
		if int64(Now()) >= old || next <= old || l.deadline.CompareAndSwap(old, next) {
			return
		}
	}
}

// Valid reports whether the lease still holds.
func (l *Lease) Valid() bool { return int64(Now()) < l.deadline.Load() }

// Deadline is when the lease ends if it is not renewed until then, on CLOCK_BOOTTIME; 0 when it was ended.
func (l *Lease) Deadline() time.Duration { return time.Duration(l.deadline.Load()) }

// Left is the time until the lease ends, 0 when it has.
func (l *Lease) Left() time.Duration {
	return max(0, time.Duration(l.deadline.Load())-Now())
}

// End ends the lease at once.
func (l *Lease) End() { l.deadline.Store(0) }

// Keep renews the lease until ctx ends (it returns nil) or the lease has
// ended (an error that wraps backends.ErrSessionOver and says why). renew
// makes one attempt; it returns an error that wraps ErrSessionOver when the server
// no longer knows the session. Failed attempts are repeated several times
// an interval, and told to failed, which may be nil.
func (l *Lease) Keep(ctx context.Context, renew func(context.Context) error, failed func(error)) error {
	for wait := l.Interval(); ; {
		timer := time.NewTimer(min(wait, l.Left()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if !l.Valid() {
			return fmt.Errorf("lease of %v not renewed in time: %w", l.ttl, backends.ErrSessionOver)
		}
		sent := Now()
		err := l.attempt(ctx, renew)
		switch {
		case err == nil:
			l.Renewed(sent)
			wait = l.Interval()
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, backends.ErrSessionOver):
			l.End()
			return err
		default:
			if failed != nil {
				failed(err)
			}
			wait = l.Interval() / 5
		}
	}
}

// attempt bounds one renewal by what is left of the lease, and by the interval.
func (l *Lease) attempt(ctx context.Context, renew func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, min(l.Interval(), l.Left()))
	defer cancel()
	return renew(ctx)
}
