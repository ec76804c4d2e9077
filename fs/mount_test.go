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
	"lockfs/config"
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

// serveMain mounts, says so on standard output, and unmounts when standard input ends.
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
	server, err := Mount(ctx, Options{Mountpoint: s.Mountpoint, Backend: backend, Config: c, Log: log, AllowOther: os.Geteuid() == 0})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return server.Close(ctx)
}

// cluster is n mounts of one cluster, each a node.
type cluster struct {
	nodes []string // mount points
}

func mount(t *testing.T, n int, policies ...config.NamePolicy) *cluster {
	t.Helper()
	c, dir := &cluster{}, t.TempDir()
	for range n {
		point, err := os.MkdirTemp("", "lockfs-fs-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(point); err != nil {
				t.Errorf("the mount point is not free: %v", err)
			}
		})
		c.nodes = append(c.nodes, point)
		serve(t, serving{Mountpoint: point, Directory: dir, Policies: policies})
	}
	return c
}

// serve starts a server process and ends it with the test.
func serve(t *testing.T, s serving) *exec.Cmd {
	t.Helper()
	what, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+string(what), "GORACE=atexit_sleep_ms=0") // not a second for each mount
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		stop := time.AfterFunc(20*time.Second, func() { cmd.Process.Signal(syscall.SIGABRT) })
		defer stop.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("server of %v: %v", s.Mountpoint, err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "mounted" {
		t.Fatalf("server of %v said %q (%v)", s.Mountpoint, line, err)
	}
	return cmd
}

// on returns the path of a name on node i.
func (c *cluster) on(i int, name string) string { return filepath.Join(c.nodes[i], name) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for: %s", what)
		}
	}
}
