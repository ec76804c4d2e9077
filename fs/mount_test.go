package fs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	filebackend "lockfs/backends/file"
	"lockfs/backends/testserver"
	"lockfs/config"
	"lockfs/fs/mountpoint"
)

// Mounts are served by processes of their own: a process that serves a mount and
// uses it can wait for itself. The test binary is that process when it is told so.

const serveEnv = "LOCKFS_TEST_SERVE"

// serving says what a server process is to mount: a node of the file back end's cluster in Directory.
type serving struct {
	Mountpoint, Directory string
	Policies              []config.NamePolicy
}

func TestMain(m *testing.M) {
	if what := os.Getenv(serveEnv); what != "" {
		if err := serveMain(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveMain mounts, says so on standard output, and unmounts when standard
// input ends; or somebody else does that.
func serveMain(what string) error {
	var s serving
	if err := json.Unmarshal([]byte(what), &s); err != nil {
		return err
	}
	ctx := context.Background()
	level := slog.LevelWarn
	if os.Getenv("LOCKFS_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	backend, err := filebackend.Open(ctx, config.File{Path: s.Directory}, "test", log)
	if err != nil {
		return err
	}
	defer backend.Close()
	c := &config.Config{Cluster: "test", Node: "node", SessionTTL: 5 * time.Second, Policies: s.Policies}
	device, err := mountpoint.Attach(mountpoint.Attachment{Point: s.Mountpoint, Source: "lockfs", Subtype: "lockfs",
		AllowOther: os.Geteuid() == 0, MaxRead: MaxRead, Options: []string{"default_permissions"}})
	if err != nil {
		return err
	}
	server, err := Mount(ctx, Options{Mountpoint: s.Mountpoint, Backend: backend, Config: c, Log: log, Device: device})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	told := make(chan struct{})
	go func() {
		defer close(told)
		io.Copy(io.Discard, os.Stdin)
	}()
	unmounted := make(chan error, 1)
	go func() { unmounted <- server.Wait() }()
	select {
	case err := <-unmounted:
		return err
	case <-told:
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return server.Close(ctx)
}

// cluster is n mounts of one cluster, each a node.
type cluster struct {
	nodes   []string // mount points
	servers []*process
}

func mount(t *testing.T, n int, policies ...config.NamePolicy) *cluster {
	t.Helper()
	c, dir := &cluster{}, t.TempDir()
	for range n {
		point := freePoint(t)
		c.nodes = append(c.nodes, point)
		c.servers = append(c.servers, serve(t, serving{Mountpoint: point, Directory: dir, Policies: policies}, os.Args[0], nil))
	}
	return c
}

// freePoint makes a directory that must be free again at the end of the test.
func freePoint(t *testing.T) string {
	t.Helper()
	point, err := os.MkdirTemp("", "lockfs-fs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(point); err != nil {
			t.Errorf("the mount point is not free: %v", err)
		}
	})
	return point
}

// process is a server process.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{} // closed when it has ended
	err   error         // how it ended
	log   strings.Builder
}

// serve starts a server process, which ends with the test.
func serve(t *testing.T, s serving, binary string, attr *syscall.SysProcAttr) *process {
	t.Helper()
	what, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(binary), ended: make(chan struct{})}
	// The race detector sleeps for a second at exit unless told not to.
	p.cmd.Env = append(os.Environ(), serveEnv+"="+string(what), "GORACE=atexit_sleep_ms=0")
	p.cmd.Stderr = io.MultiWriter(os.Stderr, &p.log)
	p.cmd.SysProcAttr = attr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("server of %v: %v", s.Mountpoint, err)
		}
	})
	if strings.TrimSpace(line) != "mounted" {
		t.Fatalf("server of %v said %q (%v)", s.Mountpoint, line, err)
	}
	return p
}

// stop tells the server to unmount, and waits for its end.
func (p *process) stop() error {
	p.stdin.Close()
	kill := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Signal(syscall.SIGABRT) })
	defer kill.Stop()
	<-p.ended
	return p.err
}

// on returns the path of a name on node i.
func (c *cluster) on(i int, name string) string { return filepath.Join(c.nodes[i], name) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testserver.Within(t, 10*time.Second, what, ok)
}
