package integration

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// First come, first served, across nodes: each who waits is let in in its turn.
func TestFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		holder := e.client(t, 0).open("x", rdonly|creat)
		want(t, "the holder's lock", holder.flock(ex), 0)
		var line []*pending
		var files []file
		for i := range 6 { // two of a node in a row, then turns
			f := e.client(t, []int{1, 1, 0, 1, 0, 0}[i]).open("x", rdonly)
			files = append(files, f)
			line = append(line, f.beginFlock(ex).blocked())
		}
		want(t, "the holder lets go", holder.flock(un), 0)
		for i, p := range line {
			want(t, fmt.Sprint("the turn of waiter ", i), p.wait().err(), 0)
			for j := i + 1; j < len(line); j++ {
				select {
				case r := <-line[j].c.replies:
					t.Fatalf("waiter %d came before waiter %d let go (%v)", j, i, r.err())
				default:
				}
			}
			want(t, "unlock", files[i].flock(un), 0)
		}
	})
}

// Readers that stand next to each other are let in together; a writer between
// them is not overtaken, and a stream of readers can't starve it.
func TestReadersAndWriters(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		open := func(node int) file { return e.client(t, node).open("x", rdonly|creat) }
		holder := open(0)
		want(t, "a reader", holder.flock(sh), 0)
		writer := open(1)
		waits := writer.beginFlock(ex).blocked()
		// Newcomers queue behind the writer, on either node, though only readers hold the lock.
		late := []file{open(0), open(1), open(0)}
		want(t, "a newcomer that does not wait", late[0].flock(sh|nb), eagain)
		var readers []*pending
		for _, f := range late {
			readers = append(readers, f.beginFlock(sh).blocked())
		}
		waits.stillBlocked()
		want(t, "the reader lets go", holder.flock(un), 0)
		want(t, "the writer", waits.wait().err(), 0)
		for _, r := range readers {
			r.stillBlocked()
		}
		want(t, "the writer lets go", writer.flock(un), 0)
		for i, r := range readers {
			want(t, fmt.Sprint("reader ", i, ", together with the others"), r.wait().err(), 0)
		}
	})
}

// median returns the one in the middle.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// A signal ends a wait with EINTR within 50 ms and leaves nothing behind.
func TestSignalEndsWait(t *testing.T) {
	waits := map[string]func(c *client) *pending{
		"flock": func(c *client) *pending { return c.open("x", rdonly).beginFlock(ex) },
		"fcntl": func(c *client) *pending { return c.open("x", rdonly).beginFcntl(setlkw, rd, 0, 0) },
		"open":  func(c *client) *pending { return c.beginOpen("y", wronly) },
	}
	oneByOne(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdonly|creat)
			want(t, "the holder's lock", x.flock(ex), 0)
			y := a.open("y", wronly|creat)
			want(t, "a handler", b.call("signal", syscall.SIGUSR1, false).err(), 0)
			before := e.look.entries(t)
			for how, begin := range waits {
				var took []time.Duration
				for range 5 {
					p := begin(b).blocked()
					sent := monotonic()
					b.signal(syscall.SIGUSR1)
					r := p.wait()
					want(t, how, r.err(), syscall.EINTR)
					took = append(took, r.Ended-sent)
				}
				if m := median(took); m > 50*time.Millisecond {
					t.Errorf("%s: EINTR after %v (median)", how, m)
				}
			}
			eventually(t, "the queue is as before", func() bool { return fmt.Sprint(e.look.entries(t)) == fmt.Sprint(before) })
			x.close()
			y.close()
			e.empty(t, patience)
			want(t, "free", b.open("x", rdonly).flock(ex|nb), 0)
		})
	})
}

// Where the handler was installed with SA_RESTART, flock goes on waiting. (That it keeps its place depends on
// how soon the machine runs it again; package locks tests that in virtual time.)
func TestRestartedWait(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		a, b := e.client(t, 0), e.client(t, 1)
		x, y := a.open("x", rdonly|creat), b.open("x", rdonly|creat)
		want(t, "the holder's lock", x.flock(ex), 0)
		want(t, "a handler", b.call("signal", syscall.SIGUSR1, true).err(), 0)
		waits := y.beginFlock(ex).blocked()
		for range 3 {
			b.signal(syscall.SIGUSR1)
			waits.stillBlocked()
		}
		want(t, "the holder lets go", x.flock(un), 0)
		want(t, "the one who waited", waits.wait().err(), 0)
	})
}

// A waiter that is killed is gone from the queue: whoever stands behind it is let in.
func TestKilledWaiter(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		x := e.client(t, 0).open("x", rdonly|creat)
		want(t, "the holder's lock", x.flock(ex), 0)
		for node := range 2 {
			c := e.client(t, node)
			c.open("x", rdonly).beginFlock(ex).blocked()
			d := e.client(t, node)
			d.beginOpen("x", wronly).blocked()
			behind := e.client(t, 1).open("x", rdonly)
			waits := behind.beginFlock(ex).blocked()
			c.kill()
			d.kill()
			waits.stillBlocked()
			want(t, "the holder lets go", x.flock(un), 0)
			want(t, "who stood behind the killed ones", waits.wait().err(), 0)
			again := x.beginFlock(ex).blocked()
			behind.close()
			want(t, "the holder's lock", again.wait().err(), 0)
		}
		x.close()
		e.empty(t, patience)
	})
}

// Two who hold read locks on the same bytes and both wait to upgrade: the second gets EDEADLK.
func TestUpgradeDeadlock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			for name, set := range map[string]struct{ try, wait int }{
				"process": {setlk, setlkw}, "description": {ofdSetlk, unix.F_OFD_SETLKW}} {
				x := a.open(name, rdwr|creat)
				want(t, "read lock", x.fcntl(set.try, rd, 10, 10), 0)
				y := b.open(name, rdwr)
				want(t, "read lock", y.fcntl(set.try, rd, 10, 10), 0)
				first := x.beginFcntl(set.wait, wr, 10, 10).blocked()
				want(t, "the second upgrade", y.fcntl(set.wait, wr, 15, 1), syscall.EDEADLK)
				first.stillBlocked()
				want(t, "the second gives its read lock up", y.fcntl(set.try, none, 0, 0), 0)
				want(t, "the first upgrade", first.wait().err(), 0)
				x.close()
				y.close()
			}
		})
	})
}

// A fcntl wait that would close a circle of waits among the processes of one node fails.
func TestCircleOfWaits(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		const n = 3
		var c [n]*client
		var mine, next [n]file
		for i := range n {
			c[i] = e.client(t, 1)
			mine[i] = c[i].open(fmt.Sprint("x", i), rdwr|creat)
			want(t, "its own", mine[i].fcntl(setlk, wr, 0, 1), 0)
		}
		for i := range n {
			next[i] = c[i].open(fmt.Sprint("x", (i+1)%n), rdwr)
		}
		var waits [n]*pending
		for i := range n - 1 {
			waits[i] = next[i].beginFcntl(setlkw, wr, 0, 1).blocked()
		}
		want(t, "the wait that would close the circle", next[n-1].fcntl(setlkw, wr, 0, 1), syscall.EDEADLK)
		for i := n - 1; i > 0; i-- {
			waits[i-1].stillBlocked()
			c[i].kill()
			want(t, fmt.Sprint("process ", i-1), waits[i-1].wait().err(), 0)
		}
	})
}
