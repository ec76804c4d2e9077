package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends/testserver"
)

// meter says what a server has had to do since it was started.
type meter interface {
	// counts: there is a server that counts.
	counts() bool
	// requests is how many requests came.
	requests() int
	// messages is how many messages it sent without being asked.
	messages() int
}

func newMeter(t testing.TB, kind string) meter {
	t.Helper()
	switch kind {
	case "redis":
		return redisMeter{t, newRedisClient(t, redisServer(t))}
	case "zookeeper":
		return zooKeeperMeter{t, zooKeeperServer(t)}
	}
	return noMeter{}
}

// noMeter: the file back end has no server.
type noMeter struct{}

func (noMeter) counts() bool  { return false }
func (noMeter) requests() int { return 0 }
func (noMeter) messages() int { return 0 }

type redisMeter struct {
	t testing.TB
	c *goredis.Client
}

func (redisMeter) counts() bool    { return true }
func (m redisMeter) requests() int { return requests(commands(m.t, m.c)) }
func (m redisMeter) messages() int { return commands(m.t, m.c)["publish"] }

type zooKeeperMeter struct {
	t testing.TB
	s *testserver.ZooKeeperServer
}

func (zooKeeperMeter) counts() bool    { return true }
func (m zooKeeperMeter) requests() int { return m.count("Received: ") }

// messages: what was sent and answers no request. The two are not read at the same moment as on the way.
func (m zooKeeperMeter) messages() int { return m.count("Sent: ") - m.count("Received: ") }

func (m zooKeeperMeter) count(what string) int {
	m.t.Helper()
	for line := range strings.Lines(m.s.Command("srvr")) {
		if n, ok := strings.CutPrefix(line, what); ok {
			count, err := strconv.Atoi(strings.TrimSpace(n))
			must(m.t, err)
			return count
		}
	}
	m.t.Fatalf("ZooKeeper does not say how many were %q", what)
	return 0
}

// processor is how much time the node's two processes have had on a processor.
func (n *node) processor() time.Duration {
	n.t.Helper()
	var sum time.Duration
	for _, pid := range []int{n.cmd.Process.Pid, n.server()} {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		must(n.t, err)
		for _, task := range tasks {
			data, err := os.ReadFile(task)
			if err != nil {
				continue // the thread has ended
			}
			running, _, _ := bytes.Cut(data, []byte(" "))
			ns, err := strconv.ParseInt(string(running), 10, 64)
			must(n.t, err)
			sum += time.Duration(ns)
		}
	}
	return sum
}
