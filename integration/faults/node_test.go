package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
)

// patience is how long a machine that is busy with other things may take for what is no wait of its own.
const patience = 60 * time.Second

// build makes the lockfs program, with the source files in overlay (path to path) in place of others.
func build(t testing.TB, overlay string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "lockfs")
	args := []string{"build", "-o", to}
	if raced {
		args = append(args, "-race")
	}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	if out, err := exec.Command("go", append(args, "lockfs/cmd/lockfs")...).CombinedOutput(); err != nil {
		t.Fatalf("building lockfs: %v\n%s", err, out)
	}
	return to
}

// node is a mount: a keeper, which is the process started here, and its server.
type node struct {
	name            string
	program, config string
	dir             string
	outside         uint64 // the device below the mount point
	proxy           *proxy
	storm           *weather
	stormFile       string

	busy sync.Mutex // who breaks it

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}        // closed when the keeper has ended
	log  *testserver.Output   // of this keeper
	logs []*testserver.Output // of all
	// quick are the deaths of this keeper's servers within its patience for them.
	quick []time.Time
}

// newNode prepares a node that mounts below dir.
func newNode(t testing.TB, c *cluster, program, dir, name, onLost string) *node {
	t.Helper()
	n := &node{name: name, program: program, proxy: newProxy(t, c.addrs()...), dir: filepath.Join(dir, name), stormFile: filepath.Join(dir, name+".storm")}
	n.config = filepath.Join(dir, name+".yml")
	if c.kind == onSentinel {
		n.proxy.translate(c.addrs())
	}
	text := fmt.Sprintf("cluster: %s\nnode: %s\nsession_ttl: %v\non_lost: %s\nbackends:\n  - %s\n", clusterName, name, c.lease(), onLost, c.entry(n.proxy.addrs()))
	var st unix.Stat_t
	var err error
	for _, step := range []func() error{
		func() error { return os.Mkdir(n.dir, 0o777) },
		func() error { return unix.Stat(n.dir, &st) },
		func() error { return os.WriteFile(n.config, []byte(text), 0o600) },
		func() error { n.storm, err = shared[weather](n.stormFile); return err },
		n.mount,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	n.outside = st.Dev
	t.Cleanup(n.crash) // what is left of it, where the run broke off
	return n
}

// mount starts lockfs and waits until it is mounted, or has failed.
func (n *node) mount() error {
	log := &testserver.Output{}
	cmd := exec.Command(n.program, "mount", "-f", "-c", n.config, n.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // the server goes with its keeper
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { // ends with the process
		_ = cmd.Wait()
		close(done)
	}()
	n.mu.Lock()
	n.cmd, n.done, n.log, n.logs, n.quick = cmd, done, log, append(n.logs, log), nil
	n.mu.Unlock()
	ended := false
	mounted := testserver.Until(patience, func() bool {
		select {
		case <-done:
			ended = true
		default:
		}
		return ended || strings.Contains(log.String(), "msg=mounted")
	})
	switch {
	case ended:
		return fmt.Errorf("lockfs on %s: %v: %s", n.dir, cmd.ProcessState, log)
	case !mounted:
		return fmt.Errorf("lockfs on %s has not mounted after %v: %s", n.dir, patience, log)
	}
	return nil
}

var serverInLog = regexp.MustCompile(`msg=mounted .*server=(\d+)`)

// server returns a handle (pidfd) for the server process that the keeper has now; the caller closes it.
func (n *node) server() (fd int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := serverInLog.FindAllStringSubmatch(n.log.String(), -1)
	if len(all) == 0 {
		return -1, errors.New("the log names no server")
	}
	pid, _ := strconv.Atoi(all[len(all)-1][1])
	if fd, err = unix.PidfdOpen(pid, 0); err != nil {
		return -1, fmt.Errorf("server %d: %w", pid, err)
	}
	// Whoever has the number now is what the handle is for.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if err != nil || len(fields) < 2 || fields[0] == "Z" || fields[1] != strconv.Itoa(n.cmd.Process.Pid) {
		unix.Close(fd)
		return -1, fmt.Errorf("process %d is the node's server no more: %w", pid, err)
	}
	return fd, nil
}

// crash ends the node as its machine's end would: neither process can do anything any more. The dead mount is taken away.
func (n *node) crash() {
	n.mu.Lock()
	cmd, done := n.cmd, n.done
	n.mu.Unlock()
	if cmd == nil {
		return
	}
	select {
	case <-done:
	default:
		_ = cmd.Process.Signal(syscall.SIGSTOP)
		if fd, err := n.server(); err == nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			unix.Close(fd)
		}
		_ = cmd.Process.Kill()
		<-done
	}
	for unix.Unmount(n.dir, unix.MNT_DETACH) == nil {
	}
}

// stop ends the node as an administrator does; it has to end well.
func (n *node) stop() error {
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // if it has ended, its state says how
	select {
	case <-n.done:
	case <-time.After(patience):
		return fmt.Errorf("%s does not end", n.name)
	}
	if !n.cmd.ProcessState.Success() {
		return fmt.Errorf("%s ended with: %v", n.name, n.cmd.ProcessState)
	}
	return nil
}

// complaints are what no log may have in it.
func (n *node) complaints() (all []string) {
	for _, log := range n.logs {
		for _, bad := range []string{"DATA RACE", "panic", "goroutine "} {
			if i := strings.Index(log.String(), bad); i >= 0 {
				text := log.String()[max(0, i-200):]
				all = append(all, fmt.Sprintf("%q in the log of %s: %s", bad, n.name, text[:min(len(text), 4000)]))
			}
		}
	}
	return all
}

// mayLoseServer reports whether the keeper would put up with another death of its server: five in a row within ten
// seconds each are the end.
func (n *node) mayLoseServer() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := time.Now()
	if k := len(n.quick); k > 0 && t.Sub(n.quick[k-1]) > 15*time.Second {
		n.quick = nil
	}
	if len(n.quick) >= 3 {
		return false
	}
	n.quick = append(n.quick, t)
	return true
}
