package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
)

// node is a mount, served by a process of its own.
type node struct {
	t    testing.TB
	dir  string // the mount point
	cmd  *exec.Cmd
	log  testserver.Output
	done chan struct{} // closed when the process has ended
	dead bool          // it was killed: nothing more is asked of it
}

// mount adds a node to the cluster. It ends with the test, by SIGTERM, and must do so well.
func (e *env) mount(lines ...string) *node {
	e.t.Helper()
	dir, err := os.MkdirTemp("", "lockfs-mount-")
	if err != nil {
		e.t.Fatal(err)
	}
	n := &node{t: e.t, dir: dir, done: make(chan struct{})}
	n.cmd = exec.Command(program, "mount", "-f", "-c", e.config(fmt.Sprint("node", len(e.nodes)), lines...), dir)
	n.cmd.Stdout, n.cmd.Stderr = &n.log, &n.log
	// Without it the race detector's runtime sleeps for a second at the end.
	n.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	// It ends with the tests, however they end. A session of its own, as a daemon has: Linux gives each session its share of the processors
	// (sched(7), autogroup), and what a priority means depends on that.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func() {
		_ = n.cmd.Wait() // the state says it all
		close(n.done)
	}()
	e.t.Cleanup(n.end)
	n.awaitMount()
	e.nodes = append(e.nodes, n)
	return n
}

// awaitMount waits until the mount is live.
func (n *node) awaitMount() {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(n.log.String(), "msg=mounted"); time.Sleep(2 * time.Millisecond) {
		select {
		case <-n.done:
			n.t.Fatalf("lockfs ended, %v", n.cmd.ProcessState)
		default:
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("not mounted after %v", patience)
		}
	}
	if !mounted(n.dir) {
		n.t.Fatalf("it says that %s is mounted, and it is not", n.dir)
	}
}

func mounted(dir string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(data), " "+dir+" ")
}

var serverInLog = regexp.MustCompile(`msg=mounted .*server=(\d+)`)

// server is the node's server process; the one that the tests started is its keeper.
func (n *node) server() int {
	n.t.Helper()
	all := serverInLog.FindAllStringSubmatch(n.log.String(), -1)
	if len(all) == 0 {
		n.t.Fatal("the log names no server")
	}
	pid, err := strconv.Atoi(all[len(all)-1][1])
	must(n.t, err)
	return pid
}

// kill ends the node as a machine's crash would: neither of its processes can do anything any more.
func (n *node) kill() {
	n.t.Helper()
	n.dead = true
	must(n.t, n.cmd.Process.Signal(syscall.SIGSTOP))
	must(n.t, syscall.Kill(n.server(), syscall.SIGKILL))
	must(n.t, n.cmd.Process.Kill())
	<-n.done
}

// stop is how an administrator ends a node. It must end well.
func (n *node) stop() {
	n.t.Helper()
	n.dead = true
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // if it has ended, the state says how
	select {
	case <-n.done:
		if code := n.cmd.ProcessState.ExitCode(); code != 0 {
			n.t.Errorf("lockfs on %s: %v", n.dir, n.cmd.ProcessState)
		}
	case <-time.After(patience):
		_ = n.cmd.Process.Signal(syscall.SIGABRT) // for the stacks
		<-n.done
		n.t.Errorf("lockfs on %s did not end within %v of SIGTERM", n.dir, patience)
	}
}

// end is the cleanup: it also holds the node's log to what no log may have in it.
func (n *node) end() {
	if !n.dead {
		n.stop()
		if mounted(n.dir) {
			n.t.Errorf("%s is still mounted", n.dir)
		}
	}
	if mounted(n.dir) {
		_ = unix.Unmount(n.dir, unix.MNT_DETACH)
	}
	if err := os.Remove(n.dir); err != nil {
		n.t.Errorf("the mount point is not free: %v", err)
	}
	log := n.log.String()
	for _, bad := range []string{"DATA RACE", "panic", "goroutine "} {
		if strings.Contains(log, bad) {
			n.t.Errorf("the log of %s has %q in it", n.dir, bad)
		}
	}
	if n.t.Failed() {
		n.t.Logf("log of %s:\n%s", filepath.Base(n.dir), tail(log, 20000))
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
