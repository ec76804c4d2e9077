package integration

import (
	"fmt"
	"syscall"
	"testing"
)

const (
	nonblock = syscall.O_NONBLOCK
	appendTo = syscall.O_APPEND
	excl     = syscall.O_EXCL
)

// writing are the ways to open for writing.
var writing = map[string]int{
	"O_WRONLY": wronly, "O_RDWR": rdwr, "O_WRONLY|O_CREAT": wronly | creat, "O_RDWR|O_CREAT": rdwr | creat,
	"O_WRONLY|O_APPEND": wronly | appendTo, "O_WRONLY|O_CREAT|O_TRUNC": wronly | creat | trunc, "O_RDWR|O_TRUNC": rdwr | trunc,
}

// An open for writing is the lock, until the last close; whoever opens for writing as well waits.
func TestOpenForWriting(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			i := 0
			for how, flags := range writing {
				name := fmt.Sprint("x", i)
				i++
				x := a.open(name, wronly|creat)
				x.write("first")
				want(t, how+" with O_NONBLOCK", b.tryOpen(name, flags|nonblock), eagain)
				r := b.open(name, rdonly)
				want(t, "flock beside the open", r.flock(sh|nb), eagain)
				waits := b.beginOpen(name, flags).blocked()
				x.write(", holder")
				x2 := x.dup()
				x.close()
				waits.stillBlocked()
				x2.close()
				y := waits.opened()
				text := "first, holder"
				if flags&trunc != 0 {
					text = ""
				}
				if got := r.read(); got != text {
					t.Errorf("%s after the wait: it reads %q, want %q", how, got, text)
				}
				want(t, "beside the one who waited", a.tryOpen(name, wronly|nonblock), eagain)
				y.close()
				r.close()
			}
		})
	})
}

func TestOpenForReadingTakesNoLock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat)
			x.write("text")
			r := b.open("x", rdonly)
			if got := r.read(); got != "text" {
				t.Errorf("it reads %q", got)
			}
			b.open("x", rdonly|creat)
			x.close()
			b.open("x", rdonly)
			eventually(t, "free beside open readers", func() bool { return a.tryOpen("x", wronly|nonblock) == nil })
		})
	})
}

// An explicit call takes over from what the open took.
func TestExplicitCallsTakeOver(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdwr|creat)
			y := b.open("x", rdonly)
			want(t, "LOCK_SH on what the open has", x.flock(sh), 0)
			want(t, "another reader", y.flock(sh|nb), 0)
			want(t, "unlock", y.flock(un), 0)
			want(t, "LOCK_UN", x.flock(un), 0)
			want(t, "given up while the file is open", y.flock(ex|nb), 0)
			want(t, "unlock", y.flock(un), 0)
			x.close()

			x = a.open("x", rdwr)
			want(t, "some bytes of what the open has", x.fcntl(setlk, wr, 0, 10), 0)
			want(t, "the rest is free", y.fcntl(setlk, rd, 10, 0), 0)
			want(t, "unlock", y.fcntl(setlk, none, 0, 0), 0)
			want(t, "unlock", x.fcntl(setlk, none, 0, 10), 0)
			want(t, "given up while the file is open", y.flock(ex|nb), 0)
		})
	})
}

// A child that inherits the descriptor holds what the open took.
func TestOpenIsInherited(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat)
			child := a.call("fork").int()
			x.close()
			waits := b.beginOpen("x", wronly).blocked()
			want(t, "end of the child", a.call("kill", child).err(), 0)
			waits.opened()
			b.kill()
			a.open("x", wronly)
		})
	})
}
