package integration

import (
	"testing"

	"golang.org/x/sys/unix"
)

const (
	rd   = unix.F_RDLCK
	wr   = unix.F_WRLCK
	none = unix.F_UNLCK
)

// Byte ranges, by both kinds of fcntl locks; the open's lock is taken over by the first call.
func TestFcntlRanges(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			for name, set := range map[string]struct{ try, wait int }{
				"process": {setlk, setlkw}, "description": {ofdSetlk, unix.F_OFD_SETLKW}} {
				x := a.open(name, rdwr|creat)
				want(t, "bytes 10 to 19", x.fcntl(set.try, wr, 10, 10), 0)
				y := b.open(name, rdwr)
				want(t, "byte 19", y.fcntl(set.try, rd, 19, 1), eagain)
				want(t, "bytes 0 to 9", y.fcntl(set.try, wr, 0, 10), 0)
				want(t, "20 to the end", y.fcntl(set.try, wr, 20, 0), 0)
				want(t, "byte 9, by the other", x.fcntl(set.try, rd, 9, 1), eagain)
				want(t, "a byte far out, by the other", x.fcntl(set.try, wr, 1<<40, 1), eagain)
				want(t, "bytes 12 and 13 are let go", x.fcntl(set.try, none, 12, 2), 0)
				want(t, "bytes 12 and 13", y.fcntl(set.try, wr, 12, 2), 0)
				want(t, "byte 14 is still held", y.fcntl(set.try, wr, 14, 1), eagain)
				want(t, "a read lock instead of the write lock", x.fcntl(set.try, rd, 14, 6), 0)
				want(t, "another reader", y.fcntl(set.try, rd, 14, 2), 0)
				want(t, "a writer beside readers", y.fcntl(set.try, wr, 14, 2), eagain)
				waits := y.beginFcntl(set.wait, wr, 10, 2).blocked()
				want(t, "bytes 10 and 11 are let go", x.fcntl(set.try, none, 10, 2), 0)
				want(t, "the one who waited", waits.wait().err(), 0)
				x.close()
				y.close()
			}
		})
	})
}

// As POSIX says: any close of the file by the process lets its locks go; a child has none of them.
func TestProcessLocksEndWithAnyClose(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdwr|creat)
			want(t, "write lock", x.fcntl(setlk, wr, 0, 0), 0)
			y := b.open("x", rdwr)
			want(t, "held", y.fcntl(setlk, rd, 0, 1), eagain)
			a.open("x", rdonly).close()
			want(t, "after the close of another descriptor", y.fcntl(setlk, wr, 0, 0), 0)
			want(t, "unlock", y.fcntl(setlk, none, 0, 0), 0)

			want(t, "write lock", x.fcntl(setlk, wr, 0, 0), 0)
			child := a.call("fork").int()
			x.dup().close()
			want(t, "though a child has the descriptor", y.fcntl(setlk, wr, 0, 0), 0)
			want(t, "end of the child", a.call("kill", child).err(), 0)
		})
	})
}

// An OFD lock is inherited, and ends with the description's last close, not the first.
func TestDescriptionLocksEndWithTheLastClose(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdwr|creat)
			want(t, "write lock", x.fcntl(ofdSetlk, wr, 5, 5), 0)
			y := b.open("x", rdwr)
			x2 := x.dup()
			x.close()
			a.open("x", rdonly).close()
			want(t, "held by the duplicate", y.fcntl(ofdSetlk, wr, 5, 1), eagain)
			child := a.call("fork").int()
			x2.close()
			want(t, "held by the child", y.fcntl(ofdSetlk, wr, 5, 1), eagain)
			waits := y.beginFcntl(unix.F_OFD_SETLKW, wr, 0, 0).blocked()
			want(t, "end of the child", a.call("kill", child).err(), 0)
			want(t, "after the last close", waits.wait().err(), 0)
		})
	})
}

// F_GETLK tells the first lock in the way, and whose it is where that is on this node.
func TestGetlk(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			pid := a.pid()
			if a.dir != b.dir {
				pid = 0 // on another node
			}
			x := a.open("x", rdwr|creat)
			want(t, "write lock of 30 to the end", x.fcntl(setlk, wr, 30, 0), 0)
			want(t, "read lock of 10 to 19", x.fcntl(setlk, rd, 10, 10), 0)
			y := b.open("x", rdwr)
			for _, c := range []struct {
				cmd, mode, start, length int
				want                     inTheWay
			}{
				{unix.F_GETLK, wr, 0, 0, inTheWay{rd, 10, 10, pid}},
				{unix.F_GETLK, rd, 0, 0, inTheWay{wr, 30, 0, pid}},
				{unix.F_OFD_GETLK, wr, 15, 100, inTheWay{rd, 10, 10, -1}}, // the kernel's own answer to this command, whoever it is
				{unix.F_GETLK, wr, 1 << 40, 1, inTheWay{wr, 30, 0, pid}},
				{unix.F_GETLK, rd, 10, 20, inTheWay{none, 10, 20, 0}},
				{unix.F_GETLK, wr, 20, 10, inTheWay{none, 20, 10, 0}},
			} {
				if got := y.getlk(c.cmd, c.mode, c.start, c.length); got != c.want {
					t.Errorf("in the way of mode %d, %d bytes from %d: %+v, want %+v", c.mode, c.length, c.start, got, c.want)
				}
			}
			if got := x.getlk(unix.F_GETLK, wr, 0, 0); got.mode != none {
				t.Errorf("a process is in its own way: %+v", got)
			}
			// A description is nobody's: pid -1, as on a local file system, or 0 from another node.
			want(t, "unlock", x.fcntl(setlk, none, 0, 0), 0)
			want(t, "OFD lock", x.fcntl(ofdSetlk, wr, 7, 1), 0)
			if got := y.getlk(unix.F_GETLK, wr, 0, 0); got.mode != wr || got.start != 7 || got.length != 1 {
				t.Errorf("an OFD lock in the way: %+v", got)
			}
		})
	})
}

// All doors lead to one lock; an owner is never in its own way.
func TestDoorsContend(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdwr|creat)
			y, z := b.open("x", rdonly), b.open("x", rdonly)
			want(t, "flock beside an open", y.flock(sh|nb), eagain)
			want(t, "fcntl beside an open", y.fcntl(setlk, rd, 0, 1), eagain)
			want(t, "OFD beside an open", y.fcntl(ofdSetlk, rd, 0, 1), eagain)
			want(t, "flock of what the open has", x.flock(ex|nb), 0)
			want(t, "fcntl of what the same descriptor has by flock", x.fcntl(setlk, wr, 5, 1), 0)
			want(t, "flock beside flock", y.flock(sh|nb), eagain)
			want(t, "flock is let go", x.flock(un), 0)
			want(t, "flock beside a fcntl lock", y.flock(sh|nb), eagain)
			want(t, "OFD beside a fcntl lock", y.fcntl(ofdSetlk, rd, 5, 1), eagain)
			want(t, "fcntl is let go", x.fcntl(setlk, none, 0, 0), 0)
			want(t, "flock", y.flock(sh|nb), 0)
			want(t, "write by fcntl beside a flock", x.fcntl(setlk, wr, 100, 1), eagain)
			want(t, "read by fcntl beside a read flock", x.fcntl(setlk, rd, 100, 1), 0)
			want(t, "write flock beside a fcntl read lock", z.flock(ex|nb), eagain)
		})
	})
}
