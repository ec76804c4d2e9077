package integration

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// env is a cluster of one test on one back end, and its nodes.
type env struct {
	t       testing.TB
	kind    string // "file", "redis", "zookeeper"
	cluster string
	backend string // its entry in the configuration
	look    looker
	nodes   []*node
}

// kinds are the back ends, each of which runs every test.
var kinds = []string{"file", "redis", "zookeeper"}

// forEachBackend runs a test on each back end at once, with two nodes. The lines are added to their configuration.
func forEachBackend(t *testing.T, f func(t *testing.T, e *env), lines ...string) {
	t.Helper()
	eachBackend(t, true, f, lines...)
}

// oneByOne is forEachBackend for tests that look at the clock: nothing else runs beside them.
func oneByOne(t *testing.T, f func(t *testing.T, e *env), lines ...string) {
	t.Helper()
	eachBackend(t, false, f, lines...)
}

func eachBackend(t *testing.T, parallel bool, f func(t *testing.T, e *env), lines ...string) {
	t.Helper()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			if parallel {
				t.Parallel()
			}
			e := newEnv(t, kind)
			e.mount(lines...)
			e.mount(lines...)
			f(t, e)
		})
	}
}

// newEnv makes a cluster of its own on the server that all tests share. It has no node yet.
func newEnv(t testing.TB, kind string) *env {
	t.Helper()
	switch kind {
	case "file":
		return newFileEnv(t)
	case "redis":
		return newRedisEnv(t, redisServer(t))
	case "zookeeper":
		return newZooKeeperEnv(t, zooKeeperServer(t))
	}
	t.Fatalf("there is no back end %q", kind)
	return nil
}

func emptyEnv(t testing.TB, kind string) *env {
	return &env{t: t, kind: kind, cluster: "it-" + rand.Text()[:10]}
}

// config writes a configuration, and returns its path.
func (e *env) config(node string, lines ...string) string {
	e.t.Helper()
	text := fmt.Sprintf("cluster: %s\nnode: %s\n", e.cluster, node)
	if !strings.Contains(strings.Join(lines, "\n"), "session_ttl:") {
		// Long, for the tests' machines may be busy; who tests the lease sets its own.
		text += "session_ttl: 20s\n"
	}
	for _, line := range lines {
		text += line + "\n"
	}
	text += "backends:\n  - " + e.backend + "\n"
	path := filepath.Join(e.t.TempDir(), node+".yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		e.t.Fatal(err)
	}
	return path
}

// on is the path of a name on a node.
func (e *env) on(node int, name string) string { return filepath.Join(e.nodes[node].dir, name) }

// pairs runs a test with two programs on two nodes, then with both on one. Names come
// with a directory of their own.
func (e *env) pairs(t *testing.T, f func(t *testing.T, a, b *client)) {
	t.Helper()
	for _, where := range []struct {
		name string
		a, b int
	}{{"two nodes", 0, 1}, {"one node", 0, 0}} {
		t.Run(where.name, func(t *testing.T) {
			dir := strings.ReplaceAll(where.name, " ", "-")
			must(t, os.Mkdir(e.on(0, dir), 0o777))
			f(t, e.nodes[where.a].client(t, dir), e.nodes[where.b].client(t, dir))
		})
	}
}
