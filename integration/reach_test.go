package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lockfs/backends/testserver"
)

// Opens while the back end is out of reach: those that may wait do, whatever the name and whatever is known of it on the node, and
// nothing else waits for them; the others fail in time, and never with what means 'held' or 'not there'.
func TestOpensOutOfReach(t *testing.T) {
	t.Parallel()
	t.Run("redis killed", func(t *testing.T) {
		t.Parallel()
		server := testserver.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
		opensOutOfReach(t, newRedisEnv(t, server), server.Stop, server.Start)
	})
	t.Run("redis stopped", func(t *testing.T) {
		t.Parallel()
		server := testserver.Redis(t)
		send := func(s syscall.Signal) func() {
			return func() { must(t, syscall.Kill(server.PID(), s)) }
		}
		opensOutOfReach(t, newRedisEnv(t, server), send(syscall.SIGSTOP), send(syscall.SIGCONT))
	})
	t.Run("zookeeper killed", func(t *testing.T) {
		t.Parallel()
		server := testserver.ZooKeeper(t)
		opensOutOfReach(t, newZooKeeperEnv(t, server), server.Stop, server.Start)
	})
}

func opensOutOfReach(t *testing.T, e *env, stop, restart func()) {
	e.backend = strings.NewReplacer("timeout: 2", "timeout: 1", "timeout: 5s", "timeout: 1s").Replace(e.backend)
	e.mount("session_ttl: 8s")
	e.mount("session_ttl: 8s")
	must(t, os.Mkdir(e.on(0, "dir"), 0o777))
	for _, name := range []string{"old", "seen", "dir/old", "dir/seen", "denied"} {
		must(t, os.WriteFile(e.on(0, name), []byte("text"), 0o666))
	}
	must(t, os.Symlink("old", e.on(0, "link")))
	must(t, os.Chmod(e.on(0, "denied"), 0o600))
	b := func() *client { return e.client(t, 1) }
	opener, held := b(), b().open("dir/seen", rdonly)
	b().open("seen", rdonly).close()
	stranger := b()
	want(t, "setuid", stranger.call("setuid", 65534).err(), 0)

	stop()
	failsInTime(t, e)
	want(t, "a handler", opener.call("signal", syscall.SIGUSR1, false).err(), 0)
	for _, name := range []string{"old", "seen", "new", "dir/new"} {
		p := opener.beginOpen(name, wronly|creat).blocked()
		opener.signal(syscall.SIGUSR1)
		r := p.wait()
		want(t, "open of "+name+", interrupted", r.err(), syscall.EINTR)
	}
	dies := b()
	dies.beginOpen("new", wronly|creat).blocked()
	dies.kill()
	eventually(t, "the end of a process that was killed in its open", func() bool {
		_, ok := <-dies.replies
		return !ok
	})

	calls := []struct {
		c     *client
		name  string
		flags int
		errno syscall.Errno
	}{
		{b(), "old", wronly, 0}, {b(), "seen", wronly | trunc, 0}, {b(), "link", rdonly, 0},
		{b(), "dir/old", rdwr, 0}, {b(), "dir/seen", rdonly, 0},
		{b(), "new", wronly | creat, 0}, {b(), "dir/new", rdonly | creat, 0},
		{b(), "none", wronly, syscall.ENOENT}, {stranger, "denied", wronly, syscall.EACCES},
	}
	var opens []*pending
	for _, call := range calls {
		opens = append(opens, call.c.beginOpen(call.name, call.flags).blocked())
	}
	one, other := b().beginOpen("two", wronly|creat).blocked(), b().beginOpen("two", wronly|creat).blocked()
	locks := held.beginFlock(ex).blocked()
	failsInTime(t, e) // for all that waits
	shell := start(t, "bash", "-c", `exec 9>"$1"; echo held; read || true`, "bash", e.on(1, "shell"))
	py := start(t, python, "-c", "import sys; f = open(sys.argv[1], 'w'); print('held', flush=True); sys.stdin.read()", e.on(1, "python"))
	eventually(t, "both wait", func() bool { return waitsInFUSE(shell.cmd.Process.Pid) && waitsInFUSE(py.cmd.Process.Pid) })
	for _, p := range append(opens, locks) {
		p.stillBlocked()
	}

	restart()
	for i, p := range opens {
		want(t, "the open of "+calls[i].name, p.wait().err(), calls[i].errno)
	}
	shell.held()
	py.held()
	select { // whoever comes first has it
	case r := <-other.c.replies:
		want(t, "one of two opens", r.err(), 0)
		one, other = other, one
	case r := <-one.c.replies:
		want(t, "one of two opens", r.err(), 0)
	case <-time.After(patience):
		t.Fatalf("none of two opens is back after %v", patience)
	}
	other.stillBlocked()
	a := e.client(t, 0)
	for _, name := range []string{"old", "new", "dir/old", "shell", "python"} {
		var err error
		eventually(t, "an answer", func() bool { // a back end that has just started may not be in time with it
			err = a.open(name, rdonly).flock(ex | nb)
			return !errors.Is(err, syscall.ENOLCK)
		})
		want(t, "a lock of "+name+", which an open has", err, syscall.EWOULDBLOCK)
	}
	one.c.kill()
	other.opened()
	want(t, "the lock call that waited all the while", locks.wait().err(), 0)
	if text, err := os.ReadFile(e.on(0, "seen")); err != nil || len(text) > 0 {
		t.Errorf("truncated, it has %q (%v)", text, err)
	}
	shell.release()
	py.release()
}

// failsInTime does what is not to wait for a back end that is out of reach, all at once.
func failsInTime(t *testing.T, e *env) {
	t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	fails := func(what string, errno syscall.Errno, f func() error) {
		all.Go(func() {
			if err := f(); !errors.Is(err, errno) {
				t.Errorf("%s: %v, not %v", what, err, errno)
			}
		})
	}
	for _, name := range []string{"old", "seen", "new"} {
		path := e.on(1, name)
		for _, flags := range []int{wronly | creat | nonblock, rdonly | nonblock, wronly | creat | excl} {
			fails(fmt.Sprintf("open of %s with %#o", name, flags), syscall.ENOLCK, func() error {
				f, err := os.OpenFile(path, flags, 0o666)
				if err == nil {
					f.Close()
				}
				return err
			})
		}
		fails("stat of "+name, syscall.EIO, func() error { _, err := os.Lstat(path); return err })
		fails("mkdir of "+name, syscall.EIO, func() error { return os.Mkdir(path, 0o777) })
		fails("unlink of "+name, syscall.EIO, func() error { return syscall.Unlink(path) })
	}
	fails("readdir", syscall.EIO, func() error { _, err := os.ReadDir(e.nodes[1].dir); return err })
	all.Wait()
	t.Logf("failed in %v", time.Since(began))
}
