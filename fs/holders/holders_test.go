package holders

import (
	"bufio"
	"context"
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

	"lockfs/config"
	"lockfs/fs/ledger"
)

// Any file system will do: what /proc tells of a file is the same everywhere.

var kill, term = config.OnLost{Signal: syscall.SIGKILL}, config.OnLost{Signal: syscall.SIGTERM}

// file makes a file and returns its inode number and mount.
func file(t *testing.T) (path string, ino uint64, mount ledger.Mount) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "a lock")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	ino, ok := field(data, "ino:")
	id, ok2 := field(data, "mnt_id:")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || !ok || !ok2 {
		t.Fatal(err, string(data))
	}
	return path, ino, ledger.Mount{ID: id, Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)}
}

// program is a shell script, and what its first line of output says are its processes' numbers.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	pids []int
}

func run(t *testing.T, script, path string, wrap ...string) *program {
	t.Helper()
	args := append(wrap, "sh", "-c", script, "sh", path)
	p := &program{t: t, cmd: exec.Command(args[0], args[1:]...)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range p.pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // they are ours and not yet waited for, or gone
		}
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	for word := range strings.FieldsSeq(line) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		p.pids = append(p.pids, pid)
	}
	return p
}

func running(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(data), ") Z ") && !strings.Contains(string(data), ") X ")
}

// ended waits for the end of all its processes.
func (p *program) ended() {
	p.t.Helper()
	for _, pid := range p.pids {
		for end := time.Now().Add(10 * time.Second); running(pid); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				p.t.Fatalf("process %d of %d still runs", pid, p.pids)
			}
		}
	}
}

func (p *program) untouched() {
	p.t.Helper()
	for _, pid := range p.pids {
		if !running(pid) {
			p.t.Errorf("process %d of %d was stopped", pid, p.pids)
		}
	}
}

// hunt does all of it.
func hunt(t *testing.T, mount ledger.Mount, entries ...ledger.Entry) {
	t.Helper()
	start := time.Now()
	Start(mount, entries, nil).Finish(t.Context())
	t.Logf("took %v", time.Since(start))
}

const (
	// holdsWithChild has the file open, and a child that inherited it.
	holdsWithChild = `exec 9>>"$1"; sleep 1000 & echo $$ $!; wait`
)

func holder(p *program, ino uint64, what config.OnLost) ledger.Entry {
	return ledger.Entry{Name: "x", Ino: ino, PID: uint32(p.pids[0]), OnLost: what}
}

func waiter(p *program, ino uint64) ledger.Entry {
	return ledger.Entry{Waits: true, Name: "x", Ino: ino, PID: uint32(p.pids[0])}
}

func TestHolderAndChildren(t *testing.T) {
	path, ino, mount := file(t)
	other, _, _ := file(t)
	h, w, r, o := run(t, holdsWithChild, path), run(t, holdsWithChild, path), run(t, `exec 8<"$1"; sleep 1000 & echo $$ $!; wait`, path), run(t, holdsWithChild, other)
	hunt(t, mount, holder(h, ino, kill), waiter(w, ino))
	h.ended()
	w.untouched()
	r.untouched()
	o.untouched()
}

// TestCallerIsGone: flock(1) took the lock on the shell's descriptor and ended. Whoever is known to wait is spared.
func TestCallerIsGone(t *testing.T) {
	path, ino, mount := file(t)
	h, w := run(t, holdsWithChild, path), run(t, holdsWithChild, path)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	hunt(t, mount, ledger.Entry{Name: "x", Ino: ino, PID: uint32(gone.Process.Pid), OnLost: kill}, waiter(w, ino))
	h.ended()
	w.untouched()
}

func TestNothingToDo(t *testing.T) {
	path, ino, mount := file(t)
	h := run(t, holdsWithChild, path)
	hunt(t, mount, holder(h, ino, config.OnLost{}))
	hunt(t, mount, waiter(h, ino))
	hunt(t, mount, holder(h, ino+1, kill))
	hunt(t, mount, ledger.Entry{Name: "x", PID: uint32(h.pids[0]), OnLost: kill}) // its open has not returned
	mount.ID++
	mount.Minor++
	hunt(t, mount, holder(h, ino, kill)) // the same inode number on another mount
	h.untouched()
}

func TestRemovedFile(t *testing.T) {
	path, ino, mount := file(t)
	h := run(t, holdsWithChild, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	hunt(t, mount, holder(h, ino, term))
	h.ended()
}

// TestOtherMountNamespace: there the mount has another number.
func TestOtherMountNamespace(t *testing.T) {
	path, ino, mount := file(t)
	h := run(t, holdsWithChild, path, "unshare", "-m")
	hunt(t, mount, holder(h, ino, kill))
	h.ended()
}

// TestThenKill: who ends at TERM has the time for it; who does not is killed then, and so are the children that it had meanwhile.
func TestThenKill(t *testing.T) {
	path, ino, mount := file(t)
	obeys := run(t, `exec 9>>"$1"; trap 'sleep 0.2; echo cleaned >"$1.done"; exit' TERM; echo $$; while :; do sleep 0.02; done`, path)
	stays := run(t, `exec 9>>"$1"; trap "sleep 1000 &" TERM; echo $$; while :; do sleep 0.02; done`, path)
	const after = 1500 * time.Millisecond
	start := time.Now()
	h := Start(mount, []ledger.Entry{
		holder(obeys, ino, config.OnLost{Signal: syscall.SIGTERM, KillAfter: after}),
		holder(stays, ino, config.OnLost{Signal: syscall.SIGTERM, KillAfter: after})}, nil)
	stays.untouched()
	h.Finish(t.Context())
	if took := time.Since(start); took < after {
		t.Errorf("killed after %v", took)
	}
	obeys.ended()
	stays.ended()
	if _, err := os.Stat(path + ".done"); err != nil {
		t.Errorf("it had no time to clean up: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // killed they are; dying takes a moment
		left := scan(mount, map[uint64]bool{ino: true}, nil, nil)
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("still have it open: %+v", left)
		}
	}
}

// TestNoTimeLeft: at the context's end KILL comes at once.
func TestNoTimeLeft(t *testing.T) {
	path, ino, mount := file(t)
	stays := run(t, `trap "" TERM; exec 9>>"$1"; echo $$; while :; do sleep 0.02; done`, path)
	h := Start(mount, []ledger.Entry{holder(stays, ino, config.OnLost{Signal: syscall.SIGTERM, KillAfter: time.Hour})}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.Finish(ctx)
	stays.ended()
}

// TestForksAllTheTime: children are born faster than anybody can look.
func TestForksAllTheTime(t *testing.T) {
	path, ino, mount := file(t)
	for range 5 {
		h := run(t, `exec 9>>"$1"; echo $$; while :; do sleep 1000 & sleep 0.001; done`, path)
		hunt(t, mount, holder(h, ino, kill))
		h.ended()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			var alive []int
			for _, d := range scan(mount, map[uint64]bool{ino: true}, nil, nil) {
				if running(d.pid) {
					alive = append(alive, d.pid)
				}
			}
			if len(alive) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("still have it open: %v", alive)
			}
		}
	}
}

// BenchmarkScan is how long it takes to look through all processes of this machine, 300 of which have 30 files open each.
func BenchmarkScan(b *testing.B) {
	files := make([]*os.File, 30)
	for i := range files {
		var err error
		if files[i], err = os.Open("/proc/self/exe"); err != nil {
			b.Fatal(err)
		}
		defer files[i].Close()
	}
	for range 300 {
		c := exec.Command("sleep", "1000")
		c.ExtraFiles = files
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	for name, bases := range map[string]map[string]bool{"all": nil, "by name": {"a lock": true}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				scan(ledger.Mount{ID: 1}, map[uint64]bool{1 << 60: true}, nil, bases)
			}
		})
	}
}
