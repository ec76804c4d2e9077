package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
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
	var all map[string]int
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if all = e.look.entries(t); all[name] == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v there are not %d claims and requests for %q, but: %v", patience, n, name, all)
		}
	}
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

func newFileEnv(t testing.TB) *env { return newFileEnvIn(t, t.TempDir()) }

func newFileEnvIn(t testing.TB, dir string) *env {
	e := emptyEnv(t, "file")
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
		var latest fileState
		eventually(t, "a state in "+path+"; else the layout has changed", func() bool {
			data, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				return true // let go of meanwhile
			}
			must(t, err)
			latest = latestState(data)
			return latest.entries > 0 // 0: torn, for it is written to just now
		})
		if latest.entries > 0 {
			counts[latest.name] = latest.entries
		}
	}
	return counts
}

// fileState is what a slot of a state's file says.
type fileState struct {
	version uint64
	name    string
	entries int
}

// latestState looks into both slots of a file, 2 KiB each; a large state has the file for itself.
func latestState(data []byte) fileState {
	const slot = 2048
	latest := parseState(data)
	if len(data) > slot && (len(data) <= 2*slot || latest.entries == 0) {
		if second := parseState(data[slot:]); second.entries > 0 && second.version >= latest.version {
			latest = second
		}
	}
	return latest
}

// parseState reads a slot: a magic line, a checksum of 4 bytes, then as varints the length of the rest (to
// which the checksum belongs), the version, the length of the name (it follows) and the number of entries.
func parseState(data []byte) (s fileState) {
	rest, ok := bytes.CutPrefix(data, []byte("lockfs state 1\n"))
	if !ok || len(rest) < 4 {
		return s
	}
	sum, rest := binary.LittleEndian.Uint32(rest), rest[4:]
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		rest = rest[max(n, 0):]
		return v
	}
	n := number()
	if rest = rest[:min(n, uint64(len(rest)))]; crc32.ChecksumIEEE(rest) != sum {
		return s
	}
	s.version = number()
	n = min(number(), uint64(len(rest)))
	s.name, rest = string(rest[:n]), rest[n:]
	s.entries = int(number())
	return s
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
