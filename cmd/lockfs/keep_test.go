package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/lease"
	"lockfs/backends/testserver"
)

// pair is two nodes of a cluster on Redis, with a short lease.
type pair struct {
	t    *testing.T
	a, b *place
}

const ttl = 2 * time.Second

func newPair(t *testing.T, onLost string) *pair {
	t.Helper()
	redis := testserver.Redis(t)
	p := &pair{t, newPlace(t), newPlace(t)}
	for _, n := range []*place{p.a, p.b} {
		n.configure(fmt.Sprintf("session_ttl: %v\non_lost: %s\nlog: {file: %s}\nbackends: [{type: redis, config: {url: 'redis://%s'}}]\n", ttl, onLost, n.log, redis.Addr()))
		n.expect(0, "mount", "-c", n.config, n.point)
	}
	return p
}

// holder is a program that holds a lock and writes down that it runs, as often as it can; so does a
// child that inherited the descriptor.
type holder struct {
	t     *testing.T
	cmd   *exec.Cmd
	signs [2]string // a file each: the time of its last sign of life
	pids  [2]int
}

// holdScript's loop asks nothing of the mount. The clock that it writes is CLOCK_BOOTTIME's (/proc/uptime counts sleep), 10 ms fine.
const holdScript = `
import os, sys, time, fcntl, signal
if len(sys.argv) > 4:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
f = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT, 0o666)
fcntl.flock(f, fcntl.LOCK_EX)
child = os.fork()
if child:
    print(os.getpid(), child, flush=True)
signs = os.open(sys.argv[2] if child else sys.argv[3], os.O_RDWR | os.O_CREAT, 0o666)
while True:
    os.pwrite(signs, b"%020d" % time.clock_gettime_ns(time.CLOCK_BOOTTIME), 0)
    time.sleep(0.0005)
`

// hold starts a holder; stubborn ones ignore SIGTERM.
func hold(t *testing.T, n *place, name string, stubborn ...string) *holder {
	t.Helper()
	h := &holder{t: t, signs: [2]string{filepath.Join(n.dir, "parent"), filepath.Join(n.dir, "child")}}
	h.cmd = exec.Command("python3", append([]string{"-c", holdScript, filepath.Join(n.point, name), h.signs[0], h.signs[1]}, stubborn...)...)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &h.pids[0], &h.pids[1])
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(h.pids[1], syscall.SIGKILL) // gone already where all went well
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	})
	return h
}

// lastSign is when the holder or its child was seen running for the last time, on CLOCK_BOOTTIME.
func (h *holder) lastSign() (last time.Duration) {
	h.t.Helper()
	for _, file := range h.signs {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it was stopped before its first
		}
		ns, err := strconv.ParseInt(strings.TrimLeft(string(data), "0"), 10, 64)
		if err != nil {
			h.t.Fatal(err)
		}
		last = max(last, time.Duration(ns))
	}
	return last
}

func (h *holder) runs() bool {
	for _, pid := range h.pids {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
			return true
		}
	}
	return false
}

// granted waits for the lock on a node and returns when it was granted, on CLOCK_BOOTTIME.
func granted(n *place, name string) <-chan time.Duration {
	n.t.Helper()
	f, err := os.OpenFile(filepath.Join(n.point, name), os.O_RDONLY|os.O_CREATE, 0o666)
	if err != nil {
		n.t.Fatal(err)
	}
	got := make(chan time.Duration, 1)
	go func() {
		defer f.Close()
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				break // an error shows as a grant that comes too early
			}
		}
		got <- lease.Now()
	}()
	return got
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testserver.Within(t, 20*time.Second, what, ok)
}

func (p *place) logText() string {
	data, _ := os.ReadFile(p.log)
	return string(data)
}

func (p *place) logHas(words ...string) {
	p.t.Helper()
next:
	for _, want := range words {
		for line := range strings.Lines(p.logText()) {
			if strings.Contains(line, want) {
				continue next
			}
		}
		p.t.Errorf("%q is not in the log:\n%s", want, p.logText())
	}
}

// served waits until the mount has a new server, the nth, and locks again.
func (p *place) served(n int) {
	p.t.Helper()
	within(p.t, "a new server", func() bool { return len(p.servers()) == n })
	if pids := p.pids(); pids[0] != pids[n-1] {
		p.t.Errorf("another keeper: %v", pids)
	}
	p.locks()
}

// TestServerStandsStill: the server is stopped for longer than its lease. Holder and child are dead
// before another node gets the lock; the mount is made anew.
func TestServerStandsStill(t *testing.T) {
	t.Parallel()
	p := newPair(t, "KILL")
	h := hold(t, p.a, "x")
	waits := hold(t, p.a, "other") // of another name: lost as well
	got := granted(p.b, "x")
	if err := syscall.Kill(p.a.servers()[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	at := <-got
	margin := at - h.lastSign()
	t.Logf("the holders ran for the last time %v before the other node got the lock", margin)
	if margin <= 0 {
		t.Errorf("the holders ran %v after the grant", -margin)
	}
	within(t, "the holders' end", func() bool { return !h.runs() })
	within(t, "the end of the other's holder", func() bool { return !waits.runs() })
	p.a.served(2)
	p.a.logHas("the server stands still", "msg=\"lock lost\" name=x mode=write pid="+strconv.Itoa(h.pids[0])+" command=python3 token=", "on_lost=KILL", "signal=SIGKILL")
	p.a.gone(p.a.servers()[0])
}

// TestServerKilled: the holders are dead at once; the other node has to wait for the lease; the mount works again within a second or so.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	p := newPair(t, "TERM then KILL after 100ms")
	h := hold(t, p.a, "x")
	got := granted(p.b, "x")
	start := lease.Now()
	if err := syscall.Kill(p.a.servers()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the holders' end", func() bool { return !h.runs() })
	took := lease.Now() - start
	p.a.served(2)
	t.Logf("holders stopped after %v, mount works after %v", took, lease.Now()-start)
	if back := lease.Now() - start; back > 5*time.Second {
		t.Errorf("the mount works again after %v", back)
	}
	at := <-got
	t.Logf("the holders ran for the last time %v before the other node got the lock", at-h.lastSign())
	if at <= h.lastSign() || at-start > ttl+2*time.Second {
		t.Errorf("granted %v after the kill, last sign %v after it", at-start, h.lastSign()-start)
	}
	p.a.logHas("the server died: signal: killed", "name=x mode=write", "signal=SIGTERM")
}

// TestBackEndOutOfReach: the server notices itself, and lives on.
func TestBackEndOutOfReach(t *testing.T) {
	const ttl = 3 * ttl // the keeper gives the server a thirtieth of it, which a busy machine may need
	t.Parallel()
	redis := testserver.Redis(t)
	n := newPlace(t)
	n.configure(fmt.Sprintf("session_ttl: %v\npolicies: [{names: 'kill/*', on_lost: KILL}]\nlog: {file: %s}\nbackends: [{type: redis, config: {url: 'redis://%s'}}]\n", ttl, n.log, redis.Addr()))
	n.expect(0, "mount", "-c", n.config, n.point)
	if err := os.Mkdir(filepath.Join(n.point, "kill"), 0o777); err != nil {
		t.Fatal(err)
	}
	h, spared := hold(t, n, "kill/x"), hold(t, n, "x")
	pid := redis.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := lease.Now()
	within(t, "the holder's end", func() bool { return !h.runs() })
	// The last renewal was sent before the server stopped.
	if ran := h.lastSign() - stopped; ran >= ttl {
		t.Errorf("ran on for %v", ran)
	}
	t.Logf("the lease of %v: the holders ran for the last time %v after the back end stopped", ttl, h.lastSign()-stopped)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log(n.logText())
		}
	}()
	within(t, "a new session", func() bool { return strings.Contains(n.logText(), "new session") })
	n.locks()
	if len(n.servers()) != 1 || !spared.runs() {
		t.Errorf("servers %v, on_lost eio: runs %v\n%s", n.servers(), spared.runs(), n.logText())
	}
	n.logHas("msg=\"lock lost\" name=kill/x mode=write pid=" + strconv.Itoa(h.pids[0]) + " command=python3 token=")
}

// TestServerStopsWhileAtIt: it has sent TERM, and does not come to the KILL. The keeper does.
func TestServerStopsWhileAtIt(t *testing.T) {
	const ttl = 3 * ttl // on a busy machine a server needs more than a tenth of two seconds to find whom to signal
	t.Parallel()
	redis := testserver.Redis(t)
	n := newPlace(t)
	n.configure(fmt.Sprintf("session_ttl: %v\non_lost: TERM then KILL after 600ms\nlog: {file: %s}\nbackends: [{type: redis, config: {url: 'redis://%s'}}]\n", ttl, n.log, redis.Addr()))
	n.expect(0, "mount", "-c", n.config, n.point)
	h := hold(t, n, "x", "stubborn")
	if err := syscall.Kill(redis.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := lease.Now()
	within(t, "the first signal", func() bool { return strings.Contains(n.logText(), "signal=SIGTERM") })
	if err := syscall.Kill(n.servers()[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	within(t, "the holder's end", func() bool { return !h.runs() })
	ran := h.lastSign() - stopped
	t.Logf("ran for the last time %v after the back end stopped", ran)
	if ran >= ttl {
		t.Errorf("too late for a lease of %v", ttl)
	}
	if err := syscall.Kill(redis.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	n.served(2)
}

// TestWaitersAreSpared: of those who have the file open, only the description that holds is meant, though the flock(1) that
// locked it has ended. Who waits goes on waiting in the new session.
func TestWaitersAreSpared(t *testing.T) {
	t.Parallel()
	redis := testserver.Redis(t)
	n := newPlace(t)
	n.configure(fmt.Sprintf("session_ttl: %v\non_lost: KILL\nlog: {file: %s}\nbackends: [{type: redis, config: {url: 'redis://%s'}}]\n", ttl, n.log, redis.Addr()))
	n.expect(0, "mount", "-c", n.config, n.point)
	script := func(text string) *exec.Cmd {
		c := exec.Command("sh", "-c", text, "sh", filepath.Join(n.point, "x"), n.dir)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	exists := func(name string) func() bool {
		return func() bool { _, err := os.Stat(filepath.Join(n.dir, name)); return err == nil }
	}
	holder := script(`exec 9>>"$1"; flock 9; sleep 1000 & echo $! >"$2/held"; wait`)
	within(t, "the lock", exists("held"))
	waiter := script(`exec 9<"$1"; : >"$2/waits"; flock 9; : >"$2/got"`)
	within(t, "the waiter", exists("waits"))
	time.Sleep(100 * time.Millisecond) // it would be as good if it came later
	if err := syscall.Kill(redis.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err == nil || holder.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the holder: %v", err)
	}
	if err := syscall.Kill(redis.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := waiter.Wait(); err != nil || !exists("got")() {
		t.Errorf("the waiter: %v, got the lock: %v", err, exists("got")())
	}
	child, err := os.ReadFile(filepath.Join(n.dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(child)))
	if err != nil {
		t.Fatal(err)
	}
	n.gone(pid)
}

// TestEIO is the default: descriptors of the old mount fail, programs run on, the mount is fresh.
func TestEIO(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	h := hold(t, p, "x")
	f, err := os.OpenFile(filepath.Join(p.point, "y"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Kill(p.servers()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.served(2)
	for _, err := range []error{syscall.Flock(int(f.Fd()), syscall.LOCK_EX), func() error { _, err := f.WriteAt([]byte("x"), 0); return err }()} {
		if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EIO) {
			t.Errorf("the old descriptor: %v", err)
		}
	}
	if !h.runs() {
		t.Error("on_lost eio stopped a program")
	}
	if out, err := exec.Command("flock", "-n", filepath.Join(p.point, "x"), "true").CombinedOutput(); err != nil {
		t.Errorf("the lost lock can't be had: %v: %s", err, out)
	}
	p.expect(0, "umount", p.point)
	p.gone(p.pids()[0])
	p.gone(p.servers()[1])
	if p.mounted() {
		t.Error("a mount is left")
	}
}

// TestKeeperKilled: the server stops the holders, says goodbye and unmounts.
func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.configure("on_lost: KILL\nlog: {file: " + p.log + "}\nbackends: [{type: file, config: {path: " + p.dir + "/state}}]\n")
	p.expect(0, "mount", "-c", p.config, p.point)
	h := hold(t, p, "x")
	p.signal(p.pids()[0], syscall.SIGKILL)
	p.gone(p.servers()[0])
	within(t, "the holders' end", func() bool { return !h.runs() }) // killed they are; dying takes a moment
	if p.mounted() {
		t.Error("still mounted")
	}
}

// TestDeathsInARow: the keeper gives up, and says so.
func TestDeathsInARow(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	for n := 1; n <= 5; n++ {
		within(t, "a server", func() bool { return len(p.servers()) == n })
		if err := syscall.Kill(p.servers()[n-1], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	p.gone(p.pids()[0])
	if p.mounted() {
		t.Error("still mounted")
	}
	p.logHas("the server dies again and again: given up")
}

// TestTermWhileServerStandsStill: nobody waits for it for ever, nothing is left.
func TestTermWhileServerStandsStill(t *testing.T) {
	t.Parallel()
	p := newPair(t, "KILL")
	h := hold(t, p.a, "x")
	if err := syscall.Kill(p.a.servers()[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p.a.signal(p.a.pids()[0], syscall.SIGTERM)
	p.a.gone(p.a.servers()[0])
	within(t, "the holders' end", func() bool { return !h.runs() })
	if p.a.mounted() {
		t.Error("still mounted")
	}
}

// TestNewServerIsLikeTheOld: it has the configuration that the first one had, and its back end, though by now the
// file says something else, and a back end before it in the list answers.
func TestNewServerIsLikeTheOld(t *testing.T) {
	t.Parallel()
	redis := testserver.Redis(t)
	redis.Stop()
	p := newPlace(t)
	p.configure(fmt.Sprintf("log: {file: %s}\nbackends: [{type: redis, config: {url: 'redis://%s'}}, {type: file, config: {path: %s/state}}]\n", p.log, redis.Addr(), p.dir))
	if out := p.expect(0, "mount", "-c", p.config, p.point); !strings.Contains(out, "NO SERVER ANSWERS") {
		t.Errorf("it said %s", out)
	}
	redis.Start()
	p.configure("nonsense")
	if err := syscall.Kill(p.servers()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.served(2)
	if n := strings.Count(p.logText(), "msg=mounted mountpoint="+p.point+" backend=\"file in "); n != 2 {
		t.Errorf("%d servers on the file back end:\n%s", n, p.logText())
	}
	p.expect(0, "umount", p.point)
}

// TestUnmountedBehindItsBack: a mount that somebody has taken away lazily is not made anew when its server dies.
func TestUnmountedBehindItsBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	h := hold(t, p, "x")
	p.expect(0, "umount", "-l", p.point)
	if err := syscall.Kill(p.servers()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.gone(p.pids()[0])
	if p.mounted() || !h.runs() {
		t.Errorf("mounted %v, the holder (on_lost eio) runs %v", p.mounted(), h.runs())
	}
}

// TestServeIsNotForPeople: the hidden command touches nothing.
func TestServeIsNotForPeople(t *testing.T) {
	p := newPlace(t)
	if out := p.expect(2, serveCommand); !strings.Contains(out, "not for people") {
		t.Errorf("it said %s", out)
	}
}

// TestUnmountedWhileServerWaits: the new server waits for its back end; who unmounts meanwhile ends both processes.
func TestUnmountedWhileServerWaits(t *testing.T) {
	t.Parallel()
	redis := testserver.Redis(t)
	p := newPlace(t)
	p.configure(fmt.Sprintf("log: {file: %s}\nbackends: [{type: redis, config: {url: 'redis://%s', socket_timeout: 0.2}}]\n", p.log, redis.Addr()))
	p.expect(0, "mount", "-c", p.config, p.point)
	redis.Stop()
	if err := syscall.Kill(p.servers()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the new server", func() bool { return strings.Contains(p.logText(), "waits for its back end") })
	p.expect(0, "umount", "-l", p.point)
	p.gone(p.pids()[0])
	if p.mounted() {
		t.Error("still mounted")
	}
}
