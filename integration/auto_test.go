package integration

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"
)

// lock_on_open: auto, the default: programs that open first and lock after.

// libraries are the ways in which lock libraries open.
var libraries = []int{rdwr, rdwr | creat | trunc, wronly | appendTo, rdwr | appendTo, wronly | appendTo | nonblock}

// plain are the ways of > and open(…, "w").
var plain = []int{wronly, wronly | creat, wronly | creat | trunc}

// Where those who use the lock open for writing and lock then, every open returns at once.
func TestOpenBesideALockOnAWritableDescriptor(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat|trunc)
			want(t, "the holder's lock", x.flock(ex), 0)
			x.write("holder")
			for _, flags := range append(plain, libraries...) {
				y := b.open("x", flags)
				want(t, "flock that does not wait", y.flock(ex|nb), eagain)
				y.close()
			}
			if r := a.open("x", rdonly); r.read() != "holder" {
				t.Errorf("opens with O_TRUNC wiped what the holder wrote: %q is left", r.read())
			}
			y := b.open("x", wronly|trunc)
			waits := y.beginFlock(ex).blocked()
			x.close()
			want(t, "flock that waited", waits.wait().err(), 0)
			if r := b.open("x", rdonly); r.read() != "" {
				t.Errorf("the truncation that was put off did not come: %q is left", r.read())
			}
		})
	})
}

// Where the holder's descriptor was opened for reading (flock(1) in path form), library opens
// return at once, and plain writes wait.
func TestOpenBesideALockOnAReadOnlyDescriptor(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdonly|creat)
			for _, mode := range []int{ex, sh} {
				want(t, "the holder's lock", x.flock(mode), 0)
				for _, flags := range libraries {
					y := b.open("x", flags)
					want(t, "flock that does not wait", y.flock(ex|nb), eagain)
					y.close()
				}
				for _, flags := range plain {
					want(t, "a plain open that is not to wait", b.tryOpen("x", flags|nonblock), eagain)
					waits := b.beginOpen("x", flags).blocked()
					want(t, "the holder lets go", x.flock(un), 0)
					y := waits.opened()
					again := x.beginFlock(mode).blocked() // for the open holds
					y.close()
					want(t, "the holder's lock", again.wait().err(), 0)
				}
			}
		})
	})
}

// Where readers of both kinds hold the lock, one who locked a writable descriptor is enough, whichever node it is on.
func TestOpenBesideReadersOfBothKinds(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			for _, c := range []struct {
				name             string
				writable, reader *client
			}{{"far", a, b}, {"near", b, a}} {
				x := c.writable.open(c.name, rdwr|creat)
				want(t, "read lock on a writable descriptor", x.flock(sh), 0)
				want(t, "read lock on another", c.reader.open(c.name, rdonly).flock(sh), 0)
				want(t, "a plain open ("+c.name+")", b.tryOpen(c.name, wronly|nonblock), 0)
			}
		})
	})
}

// Without an explicit call the first write waits for the lock, and carries out the truncation.
func TestFirstWriteWaits(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat)
			want(t, "the holder's lock", x.flock(ex), 0)
			x.write("holder's words")
			y := b.open("x", wronly|trunc)
			waits := b.begin("write", y.fd, "next").blocked()
			x.write(", and more")
			if r := a.open("x", rdonly); r.read() != "holder's words, and more" {
				t.Errorf("while the write waits: %q", r.read())
			}
			x.close()
			want(t, "the write", waits.wait().err(), 0)
			if r := b.open("x", rdonly); r.read() != "next" {
				t.Errorf("after the write: %q", r.read())
			}
			want(t, "beside the one who wrote", a.tryOpen("x", wronly|nonblock), eagain)
			y.close()
			eventually(t, "free after its close", func() bool { return a.tryOpen("x", wronly|nonblock) == nil })
		})
	})
}

// A read lock does not bring the truncation that was put off; the write lock does.
func TestTruncationWaitsForTheWriteLock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat)
			x.write("text")
			want(t, "read lock", x.flock(sh), 0)
			y := b.open("x", rdwr|trunc)
			want(t, "another reader", y.flock(sh|nb), 0)
			if got := y.read(); got != "text" {
				t.Errorf("a reader reads %q", got)
			}
			x.close()
			want(t, "write lock", y.flock(ex), 0)
			if got := y.read(); got != "" {
				t.Errorf("after the write lock: %q", got)
			}
		})
	})
}

// An open that waits already is let through when the holder's explicit call comes.
func TestWaitingOpenIsLetThrough(t *testing.T) {
	t.Parallel()
	oneByOne(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			for i, c := range []struct{ holder, waiter, locks int }{
				{wronly | creat, wronly | creat | trunc, wronly},
				{rdwr | creat, rdwr, rdwr},
			} {
				name := fmt.Sprint("x", i)
				x := a.open(name, c.holder)
				waits := b.beginOpen(name, c.waiter).blocked()
				locked := monotonic()
				want(t, "the holder's lock", x.flock(ex), 0)
				r := waits.wait()
				want(t, "the open that waited", r.err(), 0)
				if took := r.Ended - locked; took > time.Second {
					t.Errorf("let through after %v", took)
				}
				want(t, "its flock", file{b, r.int()}.flock(ex|nb), eagain)
				x.close()
			}
		})
	})
}

// An open that could only wait for its own, single-threaded process fails.
func TestOpenThatWaitsForItself(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		a, b := e.client(t, 0), e.client(t, 1)
		x := a.open("x", wronly|creat)
		want(t, "a second open by the process", a.tryOpen("x", wronly), syscall.EDEADLK)
		want(t, "again, with O_TRUNC", a.tryOpen("x", wronly|trunc), syscall.EDEADLK)
		want(t, "not to wait", a.tryOpen("x", wronly|nonblock), eagain)
		waits := b.beginOpen("x", wronly).blocked()
		child := a.call("fork").int()
		x.close()
		waits.stillBlocked() // the child has it
		// The parent no longer holds it, and waits like anybody.
		parent := a.beginOpen("x", wronly).blocked()
		must(t, syscall.Kill(child, syscall.SIGKILL))
		waits.opened().close()
		parent.opened()
	})
}

// lock_on_open: always drops the exceptions.
func TestLockOnOpenAlways(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdwr|creat)
			want(t, "the holder's lock", x.flock(ex), 0)
			for _, flags := range append(plain, libraries...) {
				want(t, "an open that is not to wait", b.tryOpen("x", flags|nonblock), eagain)
			}
			waits := b.beginOpen("x", rdwr).blocked()
			x.close()
			waits.opened()
		})
	}, "lock_on_open: always")
}

// lock_on_open: never leaves only the explicit calls.
func TestLockOnOpenNever(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat)
			y := b.open("x", wronly|trunc)
			x.write("one")
			y.write("two")
			want(t, "flock", x.flock(ex|nb), 0)
			want(t, "flock beside it", y.flock(ex|nb), eagain)
			b.open("x", wronly|trunc).write("x")
		})
	}, "lock_on_open: never")
}

// Both can be set by name pattern.
func TestLockOnOpenByPattern(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		a, b := e.client(t, 0), e.client(t, 1)
		must(t, os.Mkdir(e.on(0, "etl"), 0o777))
		for _, c := range []struct {
			name            string
			byOpen, byFlock syscall.Errno
		}{{"etl/x", eagain, eagain}, {"x.lck", 0, 0}, {"etl/x.lck", eagain, eagain}, {"other", eagain, 0}} {
			x := a.open(c.name, wronly|creat)
			want(t, c.name+" beside an open", b.tryOpen(c.name, wronly|nonblock), c.byOpen)
			want(t, "flock", x.flock(ex), 0)
			want(t, c.name+" beside flock on a writable descriptor", b.tryOpen(c.name, wronly|nonblock), c.byFlock)
		}
	}, "policies:", "  - {names: 'etl/**', lock_on_open: always}", "  - {names: '*.lck', lock_on_open: never}")
}
