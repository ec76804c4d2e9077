package file

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/backends/queue"
	"lockfs/backends/testserver"
)

// newDir returns a directory that Open accepts.
func newDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// acquire waits for a claim, bounded.
func acquire(t *testing.T, s backends.Session, name string) backends.Claim {
	t.Helper()
	c, err := s.Acquire(bounded(t), name, backends.Request{Lock: writeAll, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// waitFor starts to wait for a claim, and returns when that stands in the queue; what comes of it follows.
func waitFor(t *testing.T, s backends.Session, name string) <-chan error {
	t.Helper()
	got, queued := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := s.Acquire(bounded(t), name, backends.Request{Lock: writeAll, Wait: true, Queued: func() { close(queued) }})
		got <- err
	}()
	<-queued
	return got
}

func drop(t *testing.T, s backends.Session, name string, c backends.Claim) {
	t.Helper()
	if _, err := s.Change(bounded(t), name, []backends.Change{{ID: c.ID}}); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testserver.Within(t, 20*time.Second, what, ok)
}

// TestKilledHolder: the kernel tells of a killed holder; nobody polls for it and nobody waits for a lease.
func TestKilledHolder(t *testing.T) {
	dir := newDir(t)
	b := openBackend(t, dir)
	s := openSession(t, b)
	holder := startChild(t, task{Dir: dir, Name: "x", Lock: writeAll})
	holder.says("granted")
	first := startChild(t, task{Dir: dir, Name: "x", Lock: writeAll})
	first.says("queued")
	got := waitFor(t, s, "x")
	holder.kill()
	first.says("granted") // in its turn
	killed := time.Now()
	first.kill()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	took := time.Since(killed)
	t.Logf("the lock of a killed process came free after %v", took)
	if took > 2*time.Second {
		t.Errorf("the lock of a killed process came free after %v", took)
	}
	if n := entries(t, b, "x"); n != 1 {
		t.Errorf("%d entries are left, want the holder's", n)
	}
}

// TestKilledWaiters: the dead ones in between, and all that they left.
func TestKilledWaiters(t *testing.T) {
	dir := newDir(t)
	b := openBackend(t, dir)
	s := openSession(t, b)
	c := acquire(t, s, "x")
	var children []*process
	for range 3 {
		p := startChild(t, task{Dir: dir, Name: "x", Lock: writeAll})
		p.says("queued")
		children = append(children, p)
	}
	children[0].kill()
	children[1].kill()
	drop(t, s, "x", c)
	children[2].says("granted")
	if err := children[2].stdin.Close(); err != nil {
		t.Fatal(err)
	}
	children[2].says("closed")
	eventually(t, "no entry is left", func() bool { return entries(t, b, "x") == 0 })
	if _, err := os.Stat(areaOf(t, b).statePath("x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state of a free name is still there: %v", err)
	}
}

// TestSweep: what nobody waits for is swept by the next node that comes.
func TestSweep(t *testing.T) {
	dir := newDir(t)
	holder := startChild(t, task{Dir: dir, Name: "x", Lock: writeAll})
	holder.says("granted")
	b := openBackend(t, dir)
	if n := entries(t, b, "x"); n != 1 {
		t.Fatalf("opening swept a live session's claim: %d entries", n)
	}
	holder.kill()
	eventually(t, "the dead session's files are gone", func() bool {
		again := openBackend(t, dir)
		files, err := os.ReadDir(areaOf(t, again).sessions)
		if err != nil {
			t.Fatal(err)
		}
		return len(files) == 0
	})
	if n := entries(t, b, "x"); n != 0 {
		t.Errorf("%d entries of a dead session are left", n)
	}
}

// TestStoppedPeer: a process that is stopped holds up nobody who does not need its lock.
func TestStoppedPeer(t *testing.T) {
	dir := newDir(t)
	s := openSession(t, openBackend(t, dir))
	other := openSession(t, openBackend(t, dir))
	c := acquire(t, s, "x")
	p := startChild(t, task{Dir: dir, Name: "x", Lock: writeAll})
	p.says("queued")
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	drop(t, s, "x", c) // hands it to the stopped one
	for i := range 2000 {
		name := fmt.Sprint("y", i%10) // more messages than a socket's buffer takes would stand between them
		drop(t, other, name, acquire(t, other, name))
	}
	if _, err := other.Acquire(bounded(t), "x", backends.Request{Lock: writeAll}); !errors.Is(err, backends.ErrWouldBlock) {
		t.Errorf("a stopped holder lost its lock: %v", err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.says("granted")
}

// TestKilledAnywhere kills processes at random moments of their changes: no state
// is corrupt after it, nothing half done, and every lock comes free.
func TestKilledAnywhere(t *testing.T) {
	dir := newDir(t)
	b := openBackend(t, dir)
	s := openSession(t, b)
	for range 10 {
		p, q := startChild(t, task{Do: "churn", Dir: dir, Name: "x"}), startChild(t, task{Do: "churn", Dir: dir, Name: "x"})
		p.says("churning")
		q.says("churning")
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		p.kill()
		drop(t, s, "x", acquire(t, s, "x")) // among the living and the dead
		q.kill()
		drop(t, s, "x", acquire(t, s, "x"))
		if n := entries(t, b, "x"); n != 0 {
			t.Fatalf("%d entries are left", n)
		}
		checkLinks(t, b)
	}
}

// TestExclusionOfProcesses: several processes count under the lock while others on it are killed.
func TestExclusionOfProcesses(t *testing.T) {
	dir := newDir(t)
	b := openBackend(t, dir)
	var counters []*process
	for range 4 {
		counters = append(counters, startChild(t, task{Do: "count", Dir: dir, Name: "x"}))
	}
	for range 5 {
		p := startChild(t, task{Do: "churn", Dir: dir, Name: "x"})
		p.says("churning")
		time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
		p.kill()
	}
	for _, p := range counters {
		p.says("counted")
	}
	text, err := os.ReadFile(dir + "/counter")
	if err != nil || string(text) != fmt.Sprint(4*counts) {
		t.Errorf("4 processes counted %d times each and came to %s, %v", counts, text, err)
	}
	acquire(t, openSession(t, b), "x")
}

// TestGrantorDies: whoever lets another in is killed after it wrote that and before it said so.
func TestGrantorDies(t *testing.T) {
	dir := newDir(t)
	holder, waiter := openSession(t, openBackend(t, dir)), openSession(t, openBackend(t, dir))
	c := acquire(t, holder, "x")
	got, queued := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := waiter.Acquire(bounded(t), "x", backends.Request{Lock: writeAll, Wait: true, Queued: func() { close(queued) }})
		got <- err
	}()
	<-queued
	unlock, err := holder.a.lockShard(holder.a.shardOf("x"))
	if err != nil {
		t.Fatal(err)
	}
	st, was, err := holder.a.readState("x")
	if err != nil {
		t.Fatal(err)
	}
	st.Drop(c.ID)
	if granted, _ := st.Settle(func(e *queue.Entry) { e.Token, e.Seq = c.Token+1, c.Token+1 }); len(granted) != 1 {
		t.Fatalf("granted %v", granted)
	}
	if err := holder.a.writeState(holder.a.shardOf("x"), "x", was, st); err != nil {
		t.Fatal(err)
	}
	unlock()
	select {
	case err := <-got:
		t.Fatalf("the waiter knows of its grant though nobody said so: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	(&mortal{sessions: []*session{holder}}).kill()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// checkLinks checks that each inode has as many names as it says.
func checkLinks(t *testing.T, b *Backend) {
	t.Helper()
	list, err := b.List(bounded(t), "")
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint64]uint32{}
	for _, e := range list {
		names[e.Ino]++
	}
	for _, e := range list {
		if e.Nlink != names[e.Ino] {
			t.Fatalf("%q says %d links and has %d", e.Name, e.Nlink, names[e.Ino])
		}
	}
	inodes, err := os.ReadDir(b.dir + "/inodes")
	if err != nil {
		t.Fatal(err)
	}
	if len(inodes) != len(names) {
		t.Fatalf("%d inodes for %d that have names", len(inodes), len(names))
	}
}

// TestFullDisk runs in a mount namespace of its own, on a small tmpfs.
func TestFullDisk(t *testing.T) {
	p := startChildWith(t, task{Do: "full", Dir: t.TempDir()}, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
	p.says("all is well")
}

func (k task) fullDisk() error {
	if err := unix.Mount("tmpfs", k.Dir, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	b, s, err := k.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	other, err := b.Open(ctx, backends.SessionOptions{Node: "other", TTL: 10 * time.Second})
	if err != nil {
		return err
	}
	c, err := s.Acquire(ctx, "x", backends.Request{Lock: writeAll})
	if err != nil {
		return err
	}
	f, err := b.Create(ctx, "f", backends.Info{Mode: 0o100644})
	if err != nil {
		return err
	}
	filler := k.Dir + "/filler"
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("filling the disk: %v", err)
	}
	_, err1 := s.Acquire(ctx, "y", backends.Request{Lock: writeAll, Wait: true})
	_, err2 := b.Write(ctx, f.Ino, 0, make([]byte, 100_000), time.Now())
	_, err3 := b.Create(ctx, strings.Repeat("g", 100), backends.Info{Mode: 0o100644})
	for _, err := range []error{err1, err2, err3} {
		if !errors.Is(err, backends.ErrNoSpace) {
			return fmt.Errorf("with the disk full: %v, want ErrNoSpace", err)
		}
	}
	states, err := filepath.Glob(filepath.Join(k.Dir, "*", "boot-*", "locks", "*"))
	if err != nil || len(states) != 1 {
		return fmt.Errorf("with the disk full: states %v, want that of the name that is locked (%v)", states, err)
	}
	return k.letGo(ctx, s, other, c)
}

// letGo checks that what is held can be let go on a full disk, and on one that is read-only when it no longer is.
func (k task) letGo(ctx context.Context, s, other backends.Session, c backends.Claim) error {
	half := backends.Keep{Lock: backends.Lock{Range: backends.Range{First: 0, Last: 9}, Mode: backends.Read}}
	left, err := s.Change(ctx, "x", []backends.Change{{ID: c.ID, To: []backends.Keep{half}}})
	if err != nil {
		return fmt.Errorf("shrinking a claim on a full disk: %w", err)
	}
	if _, err := other.Acquire(ctx, "x", backends.Request{Lock: writeAll}); !errors.Is(err, backends.ErrWouldBlock) {
		return fmt.Errorf("what is left of a claim does not exclude: %v", err)
	}
	if err := unix.Mount(k.Dir, k.Dir, "", unix.MS_BIND, ""); err != nil { // on top, as files are open for writing below
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Mount("", k.Dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if _, err := other.Acquire(ctx, "z", backends.Request{Lock: writeAll}); !errors.Is(err, backends.ErrRefused) {
		return fmt.Errorf("on a read-only disk: %v, want ErrRefused", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Change(short, "x", []backends.Change{{ID: left[0].ID}}); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("letting go on a read-only disk: %v", err)
	}
	if !s.Valid() {
		return fmt.Errorf("the session is over: %w", s.Err())
	}
	if err := unix.Unmount(k.Dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	_ = os.Remove(k.Dir + "/filler") // it may not have been made
	if _, err := other.Acquire(ctx, "x", backends.Request{Lock: writeAll, Wait: true}); err != nil {
		return fmt.Errorf("after the disk could be written again: %w", err)
	}
	if err := errors.Join(s.Close(ctx), other.Close(ctx)); err != nil {
		return err
	}
	fmt.Println("all is well")
	return nil
}

// TestGuard: a session whose process is killed lives on as long as another process has its file open, and no longer. One that can't be guarded is none.
func TestGuard(t *testing.T) {
	dir := newDir(t)
	b := openBackend(t, dir)
	failing := errors.New("nobody there")
	if _, err := b.Open(bounded(t), backends.SessionOptions{Node: "n", Guard: func(*os.File) error { return failing }}); !errors.Is(err, failing) || !errors.Is(err, backends.ErrUnavailable) {
		t.Errorf("a session without its guard: %v", err)
	}
	holder := startChild(t, task{Dir: dir, Name: "x", Lock: writeAll})
	holder.says("granted")
	guard := sameFile(t, holder.cmd.Process.Pid, "/sessions/")
	s := openSession(t, b)
	got := waitFor(t, s, "x")
	holder.kill()
	select {
	case err := <-got:
		t.Errorf("a guarded session's lock came free: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := unix.Close(guard); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// sameFile returns a descriptor of a file that a process has open, shared with it.
func sameFile(t *testing.T, pid int, path string) (fd int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	for _, theirs := range fds {
		target, _ := os.Readlink(dir + theirs.Name()) // it may have been closed
		if number, err := strconv.Atoi(theirs.Name()); err == nil && strings.Contains(target, path) {
			if fd, err = unix.PidfdGetfd(process, number, 0); err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	t.Fatalf("process %d has nothing of %s open", pid, path)
	return -1
}
