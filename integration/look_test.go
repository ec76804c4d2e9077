package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"lockfs/backends/testserver"
)

// looker looks into a server, past lockfs.
type looker interface {
	// entries returns how many claims and requests there are by name.
	entries(t testing.TB) map[string]int
}

// entries returns how many claims and requests the server has for a name.
func (e *env) entries(t testing.TB, name string) int {
	t.Helper()
	return e.look.entries(t)[name]
}

// queued waits until the server has so many claims and requests for a name.
func (e *env) queued(t testing.TB, name string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d claims and requests for %q", n, name), func() bool { return e.entries(t, name) == n })
}

// empty waits until nobody has or wants anything.
func (e *env) empty(t testing.TB, limit time.Duration) {
	t.Helper()
	var left map[string]int
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if left = e.look.entries(t); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v the back end still has claims or requests: %v", limit, left)
		}
	}
}

func newFileEnv(t testing.TB) *env {
	e := emptyEnv(t, "file")
	dir := t.TempDir()
	e.backend = fmt.Sprintf("{type: file, config: {path: %q}}", dir)
	e.look = fileLook(dir)
	return e
}

// fileLook is the file back end's directory: a file a name in use.
type fileLook string

func (dir fileLook) entries(t testing.TB) map[string]int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(string(dir), "*", "boot-*", "locks", "*"))
	must(t, err)
	counts := map[string]int{}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // let go of meanwhile
		}
		must(t, err)
		name, n, err := parseState(data)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		counts[name] = n
	}
	return counts
}

// parseState reads the name and the number of entries from a state's file: a magic line, a
// checksum of 4 bytes, the length, the name with its length before it, the number; numbers are varints.
func parseState(data []byte) (name string, entries int, err error) {
	magic, body, ok := bytes.Cut(data, []byte{'\n'})
	if !ok || string(magic) != "lockfs state 1" || len(body) < 4 {
		return "", 0, fmt.Errorf("the layout has changed: it begins %q", data[:min(32, len(data))])
	}
	r := bytes.NewReader(body[4:])
	var numbers [3]uint64 // the length, the name's length, the number of entries
	for i := range numbers {
		if numbers[i], err = binary.ReadUvarint(r); err != nil {
			return "", 0, err
		}
		if i == 1 {
			text := make([]byte, numbers[1])
			if _, err := io.ReadFull(r, text); err != nil {
				return "", 0, err
			}
			name = string(text)
		}
	}
	return name, int(numbers[2]), nil
}

func newRedisEnv(t testing.TB, server *testserver.RedisServer) *env {
	e := emptyEnv(t, "redis")
	host, port, err := net.SplitHostPort(server.Addr())
	must(t, err)
	e.backend = fmt.Sprintf("{type: redis, config: {host: %s, port: %s, socket_timeout: 2}}", host, port)
	e.look = redisLook{newRedisClient(t, server), e.cluster}
	return e
}

func newRedisClient(t testing.TB, server *testserver.RedisServer) *goredis.Client {
	c := goredis.NewClient(&goredis.Options{Addr: server.Addr(),
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// redisLook is the keys of a cluster.
type redisLook struct {
	*goredis.Client
	cluster string
}

func (l redisLook) entries(t testing.TB) map[string]int {
	t.Helper()
	ctx := context.Background() // also in cleanups
	prefix := "lockfs:{" + l.cluster + "}:"
	counts := map[string]int{}
	for all := l.Scan(ctx, 0, prefix+"*", 1000).Iterator(); all.Next(ctx); {
		kind, name, _ := strings.Cut(strings.TrimPrefix(all.Val(), prefix), ":")
		var n int64
		var err error
		switch kind {
		case "g": // granted claims
			n, err = l.HLen(ctx, all.Val()).Result()
		case "q": // requests
			n, err = l.ZCard(ctx, all.Val()).Result()
		}
		must(t, err)
		if n > 0 {
			counts[name] += int(n)
		}
	}
	return counts
}

func newZooKeeperEnv(t testing.TB, server *testserver.ZooKeeperServer) *env {
	e := emptyEnv(t, "zookeeper")
	e.backend = fmt.Sprintf("{type: zookeeper, config: {hosts: [%q], timeout: 5s}}", server.Addr())
	e.look = zooKeeperLook{zooKeeperClient(t, server), e.cluster}
	return e
}

// zooKeepers are the tests' own connections, one a server: their session is not to end with a test.
var zooKeepers sync.Map

func zooKeeperClient(t testing.TB, server *testserver.ZooKeeperServer) *zk.Conn {
	t.Helper()
	get, _ := zooKeepers.LoadOrStore(server, sync.OnceValues(func() (*zk.Conn, error) {
		c, _, err := zk.Connect([]string{server.Addr()}, time.Minute, zk.WithLogger(silent{}))
		return c, err
	}))
	c, err := get.(func() (*zk.Conn, error))()
	must(t, err)
	return c
}

type silent struct{}

func (silent) Printf(string, ...any) {}

// zooKeeperLook is the znodes of a cluster: one a claim or request.
type zooKeeperLook struct {
	*zk.Conn
	cluster string
}

func (l zooKeeperLook) entries(t testing.TB) map[string]int {
	t.Helper()
	counts := map[string]int{}
	root := "/lockfs/n" + l.cluster + "/locks"
	names, _, err := l.Children(root)
	if errors.Is(err, zk.ErrNoNode) {
		if ok, _, _ := l.Exists("/lockfs/n" + l.cluster); !ok {
			t.Fatalf("nothing at %s: the layout has changed", root)
		}
		return counts
	}
	must(t, err)
	for _, escaped := range names {
		requests, _, err := l.Children(root + "/" + escaped)
		if errors.Is(err, zk.ErrNoNode) || len(requests) == 0 {
			continue
		}
		must(t, err)
		name, err := url.PathUnescape(strings.TrimPrefix(escaped, "n"))
		must(t, err)
		counts[name] = len(requests)
	}
	return counts
}
