package integration

import (
	"syscall"
	"testing"
)

const (
	sh = syscall.LOCK_SH
	ex = syscall.LOCK_EX
	un = syscall.LOCK_UN
	nb = syscall.LOCK_NB

	rdonly = syscall.O_RDONLY
	wronly = syscall.O_WRONLY
	rdwr   = syscall.O_RDWR
	creat  = syscall.O_CREAT
	trunc  = syscall.O_TRUNC

	eagain = syscall.EAGAIN // and EWOULDBLOCK
)

func TestFlock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x, y := a.open("x", rdonly|creat), b.open("x", rdonly|creat)
			want(t, "read lock", x.flock(sh), 0)
			want(t, "another", y.flock(sh|nb), 0)
			want(t, "write lock beside a reader", y.flock(ex|nb), eagain)
			want(t, "unlock", x.flock(un), 0)
			want(t, "write lock", y.flock(ex|nb), 0)
			want(t, "read lock beside a writer", x.flock(sh|nb), eagain)
			want(t, "write lock beside a writer", x.flock(ex|nb), eagain)
			waits := x.beginFlock(ex).blocked()
			want(t, "unlock", y.flock(un), 0)
			want(t, "the one who waited", waits.wait().err(), 0)
			want(t, "write lock beside a writer", y.flock(sh|nb), eagain)
			want(t, "write lock turned into a read lock", x.flock(sh), 0)
			want(t, "another reader", y.flock(sh|nb), 0)
		})
	})
}

// The last close of the open file description lets go, wherever its descriptors are.
func TestFlockEndsWithTheLastClose(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x, y := a.open("x", rdonly|creat), b.open("x", rdonly|creat)
			want(t, "write lock", x.flock(ex), 0)
			x2 := x.dup()
			x.close()
			want(t, "held by the duplicate", y.flock(ex|nb), eagain)
			child := a.call("fork").int()
			x2.close()
			want(t, "held by the child", y.flock(ex|nb), eagain)
			waits := y.beginFlock(ex).blocked()
			want(t, "the child ends", a.call("kill", child).err(), 0)
			want(t, "after the last close", waits.wait().err(), 0)
		})
	})
}

// One unlock by any of its descriptors gives up a description's lock.
func TestFlockBelongsToTheDescription(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x, y := a.open("x", rdonly|creat), b.open("x", rdonly|creat)
			other := a.open("x", rdonly)
			want(t, "write lock", x.flock(ex), 0)
			want(t, "by another description of the process", other.flock(ex|nb), eagain)
			want(t, "again", x.dup().flock(ex|nb), 0)
			want(t, "unlock by a duplicate", x.dup().flock(un), 0)
			want(t, "free", y.flock(ex|nb), 0)
		})
	})
}

// A process that is killed lets go.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			want(t, "write lock", a.open("x", rdonly|creat).flock(ex), 0)
			waits := b.open("x", rdonly).beginFlock(ex).blocked()
			a.kill()
			want(t, "after the holder's death", waits.wait().err(), 0)
		})
	})
}

// flock upgrades let go first, as Linux does: two of them don't deadlock.
func TestFlockUpgradesLetGo(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x, y := a.open("x", rdonly|creat), b.open("x", rdonly|creat)
			want(t, "read lock", x.flock(sh), 0)
			want(t, "read lock", y.flock(sh), 0)
			first := x.beginFlock(ex).blocked()
			second := y.beginFlock(ex)
			want(t, "the first, for the second let go", first.wait().err(), 0)
			second.blocked()
			want(t, "unlock", x.flock(un), 0)
			want(t, "the second", second.wait().err(), 0)
		})
	})
}
