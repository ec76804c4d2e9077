package file

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lockfs/backends"
	"lockfs/backends/backendtest"
	"lockfs/config"
)

func TestMain(m *testing.M) {
	if task := os.Getenv(childVariable); task != "" {
		child(task)
		return
	}
	goleak.VerifyTestMain(m)
}

// openBackend opens the directory of a test's cluster.
func openBackend(t *testing.T, dir string) *Backend {
	t.Helper()
	b, err := Open(t.Context(), config.File{Path: dir}, "Test cluster/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() }) // some tests close it themselves
	return b
}

func openSession(t *testing.T, b *Backend) *session {
	t.Helper()
	s, err := b.Open(t.Context(), backends.SessionOptions{Node: "n", TTL: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Close(ctx) // some tests break it
	})
	return s.(*session)
}

// mortal notes the sessions of a Backend, to end them as a kill would.
type mortal struct {
	*Backend
	sessions []*session
}

func (m *mortal) Open(ctx context.Context, o backends.SessionOptions) (backends.Session, error) {
	s, err := m.Backend.Open(ctx, o)
	if err == nil {
		m.sessions = append(m.sessions, s.(*session))
	}
	return s, err
}

// kill does to the sessions what the kernel does when a process is killed:
// closes their descriptors, and no more.
func (m *mortal) kill() {
	for _, s := range m.sessions {
		s.sock.SetUnlinkOnClose(false)
		s.end(fmt.Errorf("killed by the test: %w", backends.ErrSessionOver))
	}
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Cluster {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		viewer := openBackend(t, dir)
		return backendtest.Cluster{
			Node: func(t *testing.T) backendtest.Node {
				m := &mortal{Backend: openBackend(t, dir)}
				return backendtest.Node{Backend: m, Kill: m.kill}
			},
			Entries: func(t *testing.T, name string) int { return entries(t, viewer, name) },
		}
	})
}

// entries counts what is in the state file of a name.
func entries(t *testing.T, b *Backend, name string) int {
	t.Helper()
	unlock, err := areaOf(t, b).lockShard(areaOf(t, b).shardOf(name))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	st, _, err := areaOf(t, b).readState(name)
	if err != nil {
		t.Fatal(err)
	}
	return len(st)
}

// areaOf returns the area that a Backend's new sessions would use.
func areaOf(t *testing.T, b *Backend) *area {
	t.Helper()
	a, err := b.here(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return a
}
