package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/config"
)

// open opens for the test's duration; an open that is expected to wait is done by others.
func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := syscall.Open(path, flags|syscall.O_CLOEXEC, 0o666)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return fd
}

// touch makes a file that nobody has opened for writing: such an open's lock may be there for a moment after its close,
// which another node can't know of.
func touch(t *testing.T, path string) {
	t.Helper()
	must(t, syscall.Mknod(path, syscall.S_IFREG|0o644, 0))
}

func flockNB(fd, how int) error { return syscall.Flock(fd, how|syscall.LOCK_NB) }

func fcntl(fd, cmd int, typ int16, start, length int64) error {
	return unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: typ, Start: start, Len: length})
}

const (
	ex = syscall.LOCK_EX
	sh = syscall.LOCK_SH
	un = syscall.LOCK_UN
)

// pairs are the two nodes of a call: the same twice, then different ones.
func pairs(t *testing.T, f func(t *testing.T, c *cluster, i, j int)) {
	c := mount(t, 2)
	t.Run("one node", func(t *testing.T) { f(t, c, 0, 0) })
	t.Run("two nodes", func(t *testing.T) { f(t, c, 0, 1) })
}

func TestFlock(t *testing.T) {
	pairs(t, func(t *testing.T, c *cluster, i, j int) {
		name := fmt.Sprint("flock", i, j)
		must(t, os.WriteFile(c.on(0, name), nil, 0o666))
		a, b := open(t, c.on(i, name), syscall.O_RDONLY), open(t, c.on(j, name), syscall.O_RDONLY)
		defer syscall.Close(b)
		check(t, "share", flockNB(a, sh), 0)
		check(t, "share too", flockNB(b, sh), 0) // what the file's maker had has gone, or the first would not share
		check(t, "upgrade beside a reader", flockNB(b, ex), syscall.EWOULDBLOCK)
		check(t, "unlock", syscall.Flock(a, un), 0)
		check(t, "write lock", flockNB(b, ex), 0)
		check(t, "share beside a writer", flockNB(a, sh), syscall.EWOULDBLOCK)

		got := make(chan error, 1)
		go func() { got <- repeat(func() error { return syscall.Flock(a, ex) }) }()
		select {
		case err := <-got:
			t.Fatalf("did not wait: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		check(t, "unlock", syscall.Flock(b, un), 0)
		check(t, "waited", <-got, 0)
		check(t, "write lock beside a writer", flockNB(b, ex), syscall.EWOULDBLOCK)
		must(t, syscall.Close(a))
		if i == j {
			check(t, "right after the last close", flockNB(b, ex), 0)
		} // else: RELEASE comes after close(2) has returned, and the other node can't know of it
		eventually(t, "free after the last close", func() bool { return flockNB(b, ex) == nil })
		syscall.Flock(b, un)
	})
}

// repeat repeats what a signal to this Go program interrupted.
func repeat(f func() error) error {
	for {
		if err := f(); err != syscall.EINTR {
			return err
		}
	}
}

func TestFcntl(t *testing.T) {
	pairs(t, func(t *testing.T, c *cluster, i, j int) {
		name := fmt.Sprint("fcntl", i, j)
		must(t, os.WriteFile(c.on(0, name), nil, 0o666))
		a, b := open(t, c.on(i, name), syscall.O_RDWR|syscall.O_NONBLOCK), -1
		defer syscall.Close(a)
		check(t, "ofd lock of some bytes", fcntl(a, unix.F_OFD_SETLK, unix.F_WRLCK, 10, 10), 0)
		b = open(t, c.on(j, name), syscall.O_RDWR)
		check(t, "ofd lock of others", fcntl(b, unix.F_OFD_SETLK, unix.F_WRLCK, 20, 0), 0)
		check(t, "ofd lock that overlaps", fcntl(b, unix.F_OFD_SETLK, unix.F_RDLCK, 19, 1), syscall.EAGAIN)
		in := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 0}
		must(t, unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &in))
		if in.Type != unix.F_WRLCK || in.Start != 10 || in.Len != 10 {
			t.Errorf("in the way: %+v", in)
		}
		in = unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
		must(t, unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &in))
		if in.Type != unix.F_UNLCK {
			t.Errorf("in the way of free bytes: %+v", in)
		}
		in = unix.Flock_t{Type: unix.F_RDLCK, Start: 1000, Len: 5}
		must(t, unix.FcntlFlock(uintptr(a), unix.F_OFD_GETLK, &in))
		if in.Type != unix.F_WRLCK || in.Start != 20 || in.Len != 0 {
			t.Errorf("in the way, to the end: %+v", in)
		}
		syscall.Close(b)
		eventually(t, "an OFD lock ends with the last close", func() bool {
			return fcntl(a, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0) == nil
		})
	})
}

func TestClassicLocksEndWithAnyClose(t *testing.T) {
	c := mount(t, 2)
	path := c.on(0, "x")
	must(t, os.WriteFile(path, nil, 0o666))
	a := open(t, path, syscall.O_RDONLY)
	defer syscall.Close(a)
	b := open(t, c.on(1, "x"), syscall.O_RDONLY)
	defer syscall.Close(b)
	must(t, fcntl(a, unix.F_SETLK, unix.F_RDLCK, 0, 0))
	check(t, "flock beside a read lock", flockNB(b, ex), syscall.EWOULDBLOCK)
	other := open(t, path, syscall.O_RDONLY)
	must(t, syscall.Close(other))
	check(t, "after the close of another descriptor", flockNB(b, ex), 0)
	must(t, syscall.Flock(b, un))

	// l_pid of a holder on this node.
	must(t, fcntl(a, unix.F_SETLK, unix.F_RDLCK, 5, 1))
	for node, pid := range []int{os.Getpid(), 0} {
		script := `import fcntl, struct, sys
f = open(sys.argv[1])
print(struct.unpack('hhlli', fcntl.fcntl(f, fcntl.F_GETLK, struct.pack('hhlli', fcntl.F_WRLCK, 0, 0, 0, 0))))`
		want := fmt.Sprintf("(%d, 0, 5, 1, %d)\n", unix.F_RDLCK, pid)
		if out, err := exec.Command("python3", "-c", script, c.on(node, "x")).CombinedOutput(); string(out) != want {
			t.Errorf("in the way on node %d: %q (%v), not %q", node, out, err, want)
		}
	}
}

func TestHardLinksAreTwoLocks(t *testing.T) {
	c := mount(t, 1)
	must(t, os.WriteFile(c.on(0, "one"), nil, 0o666))
	must(t, os.Link(c.on(0, "one"), c.on(0, "two")))
	a, b := open(t, c.on(0, "one"), syscall.O_RDONLY), open(t, c.on(0, "two"), syscall.O_RDONLY)
	check(t, "one", flockNB(a, ex), 0)
	check(t, "two", flockNB(b, ex), 0)
	syscall.Close(a)
	syscall.Close(b)
}

func TestPolicies(t *testing.T) {
	c := mount(t, 2,
		config.NamePolicy{Pattern: "never/**", Policy: config.Policy{LockOnOpen: config.LockNever}},
		config.NamePolicy{Pattern: "always/**", Policy: config.Policy{LockOnOpen: config.LockAlways}},
		config.NamePolicy{Pattern: "skip/**", Policy: config.Policy{NoWritePermission: config.NoWriteSkip}})
	for _, d := range []string{"never", "always", "skip"} {
		must(t, os.Mkdir(c.on(0, d), 0o777))
	}
	a := open(t, c.on(0, "never/x"), syscall.O_WRONLY|syscall.O_CREAT)
	_, err := syscall.Write(a, []byte("a"))
	must(t, err)
	b := open(t, c.on(1, "never/x"), syscall.O_WRONLY|syscall.O_TRUNC|syscall.O_NONBLOCK)
	if data, _ := os.ReadFile(c.on(0, "never/x")); len(data) != 0 {
		t.Errorf("not truncated at open: %q", data)
	}
	check(t, "never: only explicit calls lock", flockNB(b, ex), 0)
	_, err = syscall.Write(a, []byte("a"))
	check(t, "never: a write does not wait", err, 0)
	syscall.Close(a)
	syscall.Close(b)

	a = open(t, c.on(0, "always/x"), syscall.O_WRONLY|syscall.O_CREAT)
	must(t, flockNB(a, ex))
	_, err = syscall.Open(c.on(1, "always/x"), syscall.O_RDWR|syscall.O_NONBLOCK, 0)
	check(t, "always: an open beside an explicit lock", err, syscall.EAGAIN)
	syscall.Close(a)

	// skip: who may not write the file gets success and no lock.
	touch(t, c.on(0, "skip/x"))
	must(t, os.Chmod(c.on(0, "skip"), 0o777))
	script := fmt.Sprintf("exec 9<%s; flock -n 9 && echo locked", c.on(0, "skip/x"))
	a = open(t, c.on(1, "skip/x"), syscall.O_RDONLY)
	must(t, flockNB(a, ex))
	must(t, os.Chmod(c.nodes[0], 0o1777))
	if out, err := asNobody(script); err != nil || string(out) != "locked\n" {
		t.Errorf("skip as nobody: %q (%v)", out, err)
	}
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err == nil {
		t.Errorf("skip as root: %q", out)
	}
	syscall.Close(a)
}

func asNobody(script string) ([]byte, error) {
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd.CombinedOutput()
}

// A signal ends a wait with EINTR within 50 ms, at every door, and nothing stays behind.
func TestInterrupts(t *testing.T) {
	c := mount(t, 2)
	a := open(t, c.on(0, "x"), syscall.O_WRONLY|syscall.O_CREAT)
	for _, script := range []string{
		"open(F, '>', $p)",
		"open(F, '<', $p); flock(F, 2)",
		"use Fcntl; open(F, '+<', \"$p-free\"); open(G, '<', $p); my $l = pack('s s l! l! i', F_RDLCK, 0, 0, 0, 0); fcntl(G, F_SETLKW, $l)",
	} {
		for _, node := range []int{0, 1} {
			// ALRM comes after 200 ms, its handler restarts nothing.
			perl := `use POSIX; use Time::HiRes qw(ualarm time); my $p = shift;
				sigaction(SIGALRM, POSIX::SigAction->new(sub { $at = time })); ualarm(200000, 500000); # again, were the first one too early
				my $ok = do {` + script + `}; my $e = $!;
				printf "%s %d\n", $ok ? "ok" : $e+0, (time - $at) * 1000;`
			out, err := exec.Command("perl", "-e", perl, c.on(node, "x")).CombinedOutput()
			var e, ms int
			if _, err2 := fmt.Sscan(string(bytes.TrimSpace(out)), &e, &ms); err != nil || err2 != nil || syscall.Errno(e) != syscall.EINTR || ms > 50 {
				t.Errorf("%s on node %d: %q (%v)", script, node, out, err)
			}
		}
	}
	syscall.Close(a)
	fd := open(t, c.on(1, "x"), syscall.O_RDONLY)
	eventually(t, "nothing left behind", func() bool { return flockNB(fd, ex) == nil })
	syscall.Close(fd)
}

func TestKilledHolderAndWaiter(t *testing.T) {
	c := mount(t, 2)
	touch(t, c.on(0, "x"))
	holder := exec.Command("flock", c.on(0, "x"), "sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, holder.Start())
	fd := open(t, c.on(1, "x"), syscall.O_RDONLY)
	defer syscall.Close(fd)
	eventually(t, "the holder holds", func() bool {
		if flockNB(fd, ex) == nil {
			syscall.Flock(fd, un)
			return false
		}
		return true
	})
	waiter := exec.Command("flock", c.on(0, "x"), "true")
	must(t, waiter.Start())
	time.Sleep(100 * time.Millisecond)
	must(t, waiter.Process.Kill())
	waiter.Wait()
	must(t, syscall.Kill(-holder.Process.Pid, syscall.SIGKILL))
	holder.Wait()
	eventually(t, "free after both were killed", func() bool { return flockNB(fd, ex) == nil })
}
