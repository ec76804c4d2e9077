package all

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// password must not be seen anywhere.
const password = "hunter2-secret"

// silent is an address where nobody listens.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

func redisAt(addr string) config.Backend {
	return config.Backend{Redis: &config.Redis{Network: "tcp", Address: addr, Password: password, Timeout: time.Second}}
}

func zooKeeperAt(addr string) config.Backend {
	return config.Backend{ZooKeeper: &config.ZooKeeper{Hosts: []string{addr}, Username: "u", Password: password, Timeout: time.Second}}
}

func fileIn(dir string) config.Backend { return config.Backend{File: &config.File{Path: dir}} }

// openList opens the first of these and returns the log as well.
func openList(t *testing.T, list ...config.Backend) (backends.Backend, string, error) {
	t.Helper()
	var log bytes.Buffer
	b, err := Open(t.Context(), &config.Config{Cluster: "c", Backends: list}, slog.New(slog.NewTextHandler(&log, nil)))
	if err == nil {
		t.Cleanup(func() { _ = b.Close() }) // nothing is open on it
	}
	if text := log.String(); strings.Contains(text, password) || err != nil && strings.Contains(err.Error(), password) {
		t.Errorf("the password is in the log or the error:\n%s%v", text, err)
	}
	return b, log.String(), err
}

// line returns the log's line that has all of these words.
func line(log string, words ...string) string {
	for l := range strings.Lines(log) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(l, w)
		}
		if all {
			return l
		}
	}
	return ""
}

func TestFileAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "locks")
	b, log, err := openList(t, fileIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	if !b.Local() || line(log, "level=INFO", "in use", dir) == "" || strings.Contains(log, "level=WARN") {
		t.Errorf("the file back end alone logs\n%s", log)
	}
}

func TestFirstThatAnswers(t *testing.T) {
	server := testserver.Redis(t, "--requirepass", password)
	dead, dir := silent(t), filepath.Join(t.TempDir(), "locks")
	b, log, err := openList(t, redisAt(dead), redisAt(server.Addr()), fileIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	if b.Local() || !strings.Contains(b.String(), server.Addr()) {
		t.Errorf("%v is used, want the redis at %s", b, server.Addr())
	}
	if line(log, "level=INFO", "can't be used", dead) == "" || line(log, "level=INFO", "in use", server.Addr()) == "" || strings.Contains(log, "level=WARN") {
		t.Errorf("the log is\n%s", log)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a back end behind the one in use was touched: %v", err)
	}
}

func TestZooKeeperAnswers(t *testing.T) {
	server := testserver.ZooKeeper(t)
	b, log, err := openList(t, redisAt(silent(t)), zooKeeperAt(server.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	if b.Local() || line(log, "level=INFO", "in use", server.Addr()) == "" {
		t.Errorf("%v is used, and the log is\n%s", b, log)
	}
}

// TestLocalBehindServers: no server answers, so the locks end at this machine, and people must know.
func TestLocalBehindServers(t *testing.T) {
	dead, dir := silent(t), filepath.Join(t.TempDir(), "locks")
	b, log, err := openList(t, redisAt(dead), fileIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	if !b.Local() || line(log, "level=WARN", "END AT THIS MACHINE", dir) == "" || line(log, "level=INFO", "can't be used", dead) == "" {
		t.Errorf("%v is used, and the log is\n%s", b, log)
	}
}

// TestRefused: a server that refuses the password is not passed over in silence.
func TestRefused(t *testing.T) {
	server := testserver.Redis(t, "--requirepass", "another")
	_, log, err := openList(t, redisAt(server.Addr()), fileIn(filepath.Join(t.TempDir(), "locks")))
	if err != nil {
		t.Fatal(err)
	}
	if line(log, "level=WARN", "can't be used", server.Addr()) == "" {
		t.Errorf("the log is\n%s", log)
	}
}

func TestNoneAnswers(t *testing.T) {
	r, z := silent(t), silent(t)
	foreign := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := openList(t, redisAt(r), zooKeeperAt(z), fileIn(foreign))
	if err == nil {
		t.Fatal("a back end was opened that is not there")
	}
	for _, name := range []string{r, z, foreign} {
		if strings.Count(err.Error(), "at "+name)+strings.Count(err.Error(), "in "+name) != 1 {
			t.Errorf("%s is not named once in\n%v", name, err)
		}
	}
	if !errors.Is(err, backends.ErrUnavailable) || !errors.Is(err, backends.ErrForeign) {
		t.Errorf("the error does not wrap the reasons: %v", err)
	}
	if _, _, err := openList(t); err == nil {
		t.Error("an empty list was opened")
	}
	if _, _, err := openList(t, config.Backend{}); err == nil {
		t.Error("a back end of no type was opened")
	}
}

// TestInterrupted: who gives up is not kept waiting by the servers.
func TestInterrupted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // the test is over
	addr := l.Addr().String()
	slow := redisAt(addr)
	slow.Redis.Timeout = 30 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = Open(ctx, &config.Config{Cluster: "c", Backends: []config.Backend{slow, fileIn(filepath.Join(t.TempDir(), "locks"))}}, nil)
	if err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("Open returned %v after %v", err, time.Since(start))
	}
}
