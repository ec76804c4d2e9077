package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who tries a lock that another node has had for some seconds is told that it is held, though that node stands still: for as long as its lease lasts the
// answer is known. In the first seconds the node has to be asked, and nobody is told 'held' of what may be free.
func TestHeldByAFrozenNode(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		const names = 3 // one for each attempt, for an attempt lets the other node know that somebody asks
		a, b := e.client(t, 0), e.client(t, 1)
		var theirs []file
		for i := range names {
			x := a.open(fmt.Sprint("x", i), rdonly|creat)
			for range 4 { // then ZooKeeper keeps it too
				want(t, "lock", x.flock(ex), 0)
				want(t, "unlock", x.flock(un), 0)
			}
			want(t, "lock", x.flock(ex), 0)
			theirs = append(theirs, b.open(fmt.Sprint("x", i), rdonly))
		}
		signal := func(s syscall.Signal) { must(t, syscall.Kill(e.nodes[0].server(), s)) }
		for i, y := range theirs {
			time.Sleep(3 * time.Second) // what lasts
			signal(syscall.SIGSTOP)
			got := y.flock(ex | nb)
			var held inTheWay
			if got == eagain {
				held = y.getlk(unix.F_GETLK, rd, 0, 0)
			}
			signal(syscall.SIGCONT)
			switch got {
			case unix.ENOLCK: // after the time-out
				continue
			case eagain:
				if held.mode != wr {
					t.Errorf("F_GETLK finds %+v, want a write lock", held)
				}
				return
			}
			t.Fatalf("attempt %d: %v", i+1, got)
		}
		t.Errorf("the back end does not know after %d time-outs that the lock is held", names)
	})
}
