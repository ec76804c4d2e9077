package integration

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A name that a node took again and again stays with it for a while after the last unlock. Nobody else notices.
func TestKeptLocks(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		a, b := e.client(t, 0), e.client(t, 1)
		x := a.open("x", rdwr|creat)
		want(t, "the open's lock", x.flock(un), 0)
		y := b.open("x", rdwr|creat)
		want(t, "the open's lock", y.flock(un), 0)
		kept := func() {
			for range 5 {
				want(t, "lock", x.flock(ex), 0)
				want(t, "unlock", x.flock(un), 0)
			}
		}
		for range 3 {
			kept()
			want(t, "write lock, not waiting", y.flock(ex|nb), 0)
			want(t, "unlock", y.flock(un), 0)
			kept()
			want(t, "read lock, not waiting", y.flock(sh|nb), 0)
			want(t, "another", x.flock(sh|nb), 0)
			want(t, "unlock", x.flock(un), 0)
			want(t, "unlock", y.flock(un), 0)
			kept()
			if w := y.getlk(unix.F_GETLK, wr, 0, 0); w.mode != none {
				t.Errorf("F_GETLK finds %+v, and nobody holds", w)
			}
			kept()
			want(t, "fcntl, not waiting", y.fcntl(setlk, wr, 5, 1), 0)
			want(t, "fcntl unlock", y.fcntl(setlk, none, 0, 0), 0)
			kept()
			want(t, "lock", x.flock(ex), 0)
			if w := y.getlk(unix.F_GETLK, rd, 0, 0); w.mode != wr {
				t.Errorf("F_GETLK finds %+v, want a write lock", w)
			}
			want(t, "not waiting, while it is held", y.flock(ex|nb), eagain)
			want(t, "and again", y.flock(sh|nb), eagain)
			waits := y.beginFlock(ex).blocked()
			want(t, "unlock", x.flock(un), 0)
			want(t, "who waited", waits.wait().err(), 0)
			want(t, "unlock", y.flock(un), 0)
		}
		x.close()
		y.close()
		e.empty(t, patience)
	})
}
