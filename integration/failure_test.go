package integration

import (
	"syscall"
	"testing"
	"time"

	"lockfs/backends/testserver"
)

// A node that is killed: its locks are free after the lease and a second, its waiters gone.
func TestKilledNode(t *testing.T) {
	const ttl = 2 * time.Second
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			e := newEnv(t, kind)
			lines := []string{"session_ttl: 2s"}
			dead, live := e.mount(lines...), e.mount(lines...)
			a, a2, b := dead.client(t, ""), dead.client(t, ""), live.client(t, "")
			y := b.open("y", rdonly|creat)
			want(t, "a lock of the live node", y.flock(ex), 0)
			x := a.open("x", rdwr|creat)
			want(t, "a lock of the node that dies", x.flock(ex), 0)
			a2.open("y", rdonly).beginFlock(ex).blocked() // a waiter of the node that dies
			e.queued(t, "y", 2)
			waits := b.open("x", rdonly).beginFlock(ex).blocked()
			died := monotonic()
			dead.kill()
			r := waits.wait()
			want(t, "the waiter of the live node", r.err(), 0)
			if took := r.Ended - died; took > ttl+time.Second {
				t.Errorf("the dead node's lock was free after %v", took)
			}
			// The dead node's waiter is gone: it is let in by no release, nor is anybody kept out for it.
			want(t, "unlock", y.flock(un), 0)
			want(t, "lock", b.open("y", rdonly).flock(ex|nb), 0)
			b.kill()
			e.empty(t, ttl+time.Second)
		})
	}
}

// A node that says goodbye frees its locks at once.
func TestStoppedNode(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		third := e.mount("session_ttl: 5m")
		c := third.client(t, "")
		x := c.open("x", rdonly|creat)
		want(t, "lock", x.flock(ex), 0)
		waits := e.client(t, 0).open("x", rdonly).beginFlock(ex).blocked()
		third.stop() // though the file is open
		want(t, "the waiter of another node", waits.wait().err(), 0)
	})
}

// The back end out of reach: who does not wait gets ENOLCK, never 'held'; who waits goes on, can be
// interrupted, and is served when the server is back. The lease is long: nothing is lost.
func TestBackEndOutOfReach(t *testing.T) {
	t.Parallel()
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := testserver.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
		// A Redis that was restarted grants nothing for as long as the lease.
		outOfReach(t, newRedisEnv(t, server), "session_ttl: 20s", server.Stop, server.Start)
	})
	t.Run("zookeeper", func(t *testing.T) {
		t.Parallel()
		server := testserver.ZooKeeper(t)
		outOfReach(t, newZooKeeperEnv(t, server), "session_ttl: 1m", server.Stop, server.Start)
	})
}

func outOfReach(t *testing.T, e *env, lease string, stop, start func()) {
	e.mount(lease)
	e.mount(lease)
	a, b, c, d := e.client(t, 0), e.client(t, 1), e.client(t, 1), e.client(t, 1)
	held := a.open("held", rdonly|creat)
	want(t, "a lock that stays", held.flock(ex), 0)
	waiting := b.open("held", rdonly)
	trying, interrupted := c.open("free", rdonly|creat), d.open("free", rdonly)
	want(t, "a handler", d.call("signal", syscall.SIGUSR1, false).err(), 0)
	before := waiting.beginFlock(ex).blocked()
	e.queued(t, "held", 2)

	stop()
	want(t, "a lock call that does not wait", trying.flock(ex|nb), syscall.ENOLCK)
	want(t, "a fcntl call that does not wait", trying.fcntl(setlk, rd, 0, 1), syscall.ENOLCK)
	during := trying.beginFlock(ex).blocked()
	p := interrupted.beginFlock(sh).blocked()
	d.signal(syscall.SIGUSR1)
	want(t, "a wait that is interrupted", p.wait().err(), syscall.EINTR)
	before.stillBlocked()

	start()
	want(t, "the one who began to wait meanwhile", during.wait().err(), 0)
	before.stillBlocked()
	want(t, "the holder lets go", held.flock(un), 0)
	want(t, "the one who waited all the while", before.wait().err(), 0)
	want(t, "unlock", trying.flock(un), 0)
	want(t, "a lock call that does not wait", interrupted.flock(ex|nb), 0)
}
