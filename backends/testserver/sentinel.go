package testserver

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// MasterName is how the Sentinels of tests know their master.
const MasterName = "lockfs"

// RedisSentinel is a master, a replica, and three Sentinels that promote the replica
// when two of them miss the master for half a second. It ends with the test.
type RedisSentinel struct {
	t         testing.TB
	servers   [2]*RedisServer
	sentinels [3]*RedisServer
	down      *RedisServer // that Stop has stopped
}

// Sentinel starts them. args are for both servers, as Redis has them.
func Sentinel(t testing.TB, args ...string) *RedisSentinel {
	t.Helper()
	s := &RedisSentinel{t: t}
	s.servers[0] = Redis(t, args...)
	s.servers[1] = Redis(t, args...)
	s.replicate(s.servers[1], s.servers[0])
	for i := range s.sentinels {
		s.sentinels[i] = s.sentinel(i)
	}
	s.await(20*time.Second, "the Sentinels know of each other and of the replica", func() bool {
		for _, each := range s.sentinels {
			reply := each.Command("SENTINEL", "MASTER", MasterName)
			if field(reply, "num-slaves") != "1" || field(reply, "num-other-sentinels") != "2" || field(reply, "flags") != "master" {
				return false
			}
		}
		return true
	})
	s.AwaitReplica()
	return s
}

// sentinel starts a Sentinel. Its settings are a file, which it writes to.
func (s *RedisSentinel) sentinel(i int) *RedisServer {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "sentinel.conf")
	host, port, _ := net.SplitHostPort(s.servers[0].Addr())
	settings := fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s 2\nsentinel down-after-milliseconds %[1]s 500\nsentinel failover-timeout %[1]s 1500\n",
		MasterName, host, port)
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return redisServer(s.t, []string{file, "--sentinel"})
}

// Addrs are the Sentinels' host:port.
func (s *RedisSentinel) Addrs() (all []string) {
	for _, each := range s.sentinels {
		all = append(all, each.Addr())
	}
	return all
}

// Sentinels are the three.
func (s *RedisSentinel) Sentinels() []*RedisServer { return s.sentinels[:] }

// Servers are master and replica, in no order.
func (s *RedisSentinel) Servers() []*RedisServer { return s.servers[:] }

// Master is the server that most of the Sentinels name.
func (s *RedisSentinel) Master() *RedisServer {
	s.t.Helper()
	var master *RedisServer
	s.await(20*time.Second, "two Sentinels name the same master", func() bool {
		votes := map[string]int{}
		for _, each := range s.sentinels {
			reply := each.Command("SENTINEL", "MASTER", MasterName)
			votes[net.JoinHostPort(field(reply, "ip"), field(reply, "port"))]++
		}
		for _, each := range s.servers {
			if votes[each.Addr()] >= 2 {
				master = each
				return true
			}
		}
		return false
	})
	return master
}

// Replica is the other one.
func (s *RedisSentinel) Replica() *RedisServer {
	s.t.Helper()
	if master := s.Master(); master == s.servers[0] {
		return s.servers[1]
	}
	return s.servers[0]
}

// Addr is the master's host:port.
func (s *RedisSentinel) Addr() string { return s.Master().Addr() }

// Dir is the master's data directory.
func (s *RedisSentinel) Dir() string { return s.Master().Dir() }

// Stop kills the master, as a crash would. The replica may be promoted.
func (s *RedisSentinel) Stop() {
	s.down = s.Master()
	s.down.Stop()
}

// Start starts again what Stop has stopped, as a master, until the Sentinels tell it what it is.
func (s *RedisSentinel) Start() { s.down.Start() }

// Ready reports whether the replica is a copy of the master, and up in the eyes of the Sentinels.
func (s *RedisSentinel) Ready() bool {
	master, replica := s.Master(), s.Replica()
	_, port, _ := net.SplitHostPort(master.Addr())
	info := replica.Command("INFO", "replication")
	for _, want := range []string{"role:slave", "master_port:" + port, "master_link_status:up"} {
		if !strings.Contains(info, want+"\r\n") {
			return false
		}
	}
	for _, each := range s.sentinels {
		reply := each.Command("SENTINEL", "REPLICAS", MasterName)
		if field(reply, "flags") != "slave" { // it is down, in the Sentinel's eyes
			return false
		}
	}
	return true
}

// AwaitReplica waits until the replica is a copy of the master. It has to be told to, where it was a master
// that was killed: the Sentinels take their time.
func (s *RedisSentinel) AwaitReplica() {
	s.t.Helper()
	s.await(30*time.Second, "the replica is in sync", s.Ready)
}

// Rejoin makes the server that is not the master the replica of the one that is, as an administrator may do.
func (s *RedisSentinel) Rejoin() { s.replicate(s.Replica(), s.Master()) }

func (s *RedisSentinel) replicate(replica, master *RedisServer) {
	host, port, _ := net.SplitHostPort(master.Addr())
	replica.Command("REPLICAOF", host, port)
}

// Deafen makes the replica hear nothing of the master any more. The Sentinels notice in some seconds, and mend it.
func (s *RedisSentinel) Deafen() { s.Replica().Command("REPLICAOF", "127.0.0.1", "1") }

// AwaitFailover waits until another server than old is the master, and says so itself.
func (s *RedisSentinel) AwaitFailover(old *RedisServer) {
	s.t.Helper()
	s.await(30*time.Second, "the replica is promoted", func() bool {
		now := s.Master()
		return now != old && strings.Contains(now.Command("INFO", "replication"), "role:master")
	})
}

func (s *RedisSentinel) await(limit time.Duration, what string, ok func() bool) {
	s.t.Helper()
	if Until(limit, ok) {
		return
	}
	for _, each := range s.sentinels {
		s.t.Logf("Sentinel at %s says: %s", each.Addr(), each.output.String())
	}
	s.t.Fatalf("not within %v: %s", limit, what)
}

// field is what follows a name in a reply that is a list of names and values.
func field(reply, name string) string {
	lines := strings.Split(reply, "\r\n")
	for i, line := range lines {
		if line == name && i+2 < len(lines) {
			return lines[i+2]
		}
	}
	return ""
}
