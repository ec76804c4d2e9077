package testserver

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// RedisCluster is a Redis Cluster of three masters that have a third of the slots each, and a replica of
// the one that has a key. It ends with the test.
type RedisCluster struct {
	t       testing.TB
	masters [3]*RedisServer
	replica *RedisServer
	slot    int
}

// Cluster starts one, with a replica of the master that has key.
func Cluster(t testing.TB, key string) *RedisCluster {
	t.Helper()
	c := &RedisCluster{t: t}
	for i := range c.masters {
		c.masters[i] = c.node()
		first := 16384 * i / 3
		c.masters[i].Command("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(16384*(i+1)/3-1))
		c.masters[i].Command("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	c.replica = c.node()
	for _, each := range append(c.masters[1:], c.replica) {
		host, port, _ := net.SplitHostPort(c.masters[0].Addr())
		each.Command("CLUSTER", "MEET", host, port, strconv.Itoa(c.masters[0].busPort()))
	}
	await(t, 30*time.Second, "all nodes know each other", func() bool {
		for _, each := range c.Nodes() {
			info := each.Command("CLUSTER", "INFO")
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:4") {
				return false
			}
		}
		return true
	})
	c.slot, _ = strconv.Atoi(strings.Trim(c.replica.Command("CLUSTER", "KEYSLOT", key), ":\r\n"))
	c.ReplicateOwner()
	return c
}

// ReplicateOwner makes the replica one of the master that has the key now.
func (c *RedisCluster) ReplicateOwner() {
	c.t.Helper()
	owner := c.Owner()
	await(c.t, 30*time.Second, "the replica is in sync", func() bool {
		_, port, _ := net.SplitHostPort(owner.Addr())
		info := c.replica.Command("INFO", "replication")
		if !strings.Contains(info, "master_port:"+port+"\r\n") {
			c.replica.Command("CLUSTER", "REPLICATE", owner.nodeID())
		}
		return strings.Contains(info, "master_link_status:up") &&
			strings.Contains(owner.Command("INFO", "replication"), "state=online")
	})
}

func (c *RedisCluster) node() *RedisServer {
	c.t.Helper()
	return redisServer(c.t, []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
		"--cluster-port", strconv.Itoa(freePort(c.t))})
}

func (s *RedisServer) busPort() int {
	for i, word := range s.args {
		if word == "--cluster-port" {
			n, _ := strconv.Atoi(s.args[i+1])
			return n
		}
	}
	return 0
}

// nodeID is the server's name in its Redis Cluster.
func (s *RedisServer) nodeID() string {
	_, id, _ := strings.Cut(s.Command("CLUSTER", "MYID"), "\r\n")
	return strings.TrimSpace(id)
}

// Nodes are all nodes, the replica the last.
func (c *RedisCluster) Nodes() []*RedisServer { return append(c.masters[:3:3], c.replica) }

// Addrs are the nodes' host:port.
func (c *RedisCluster) Addrs() (all []string) {
	for _, each := range c.Nodes() {
		all = append(all, each.Addr())
	}
	return all
}

// Owner is a node that has the key and lives; nil: there is none.
func (c *RedisCluster) Owner() *RedisServer {
	for _, each := range c.Nodes() {
		if each.ownsSlot(c.slot) {
			return each
		}
	}
	return nil
}

// ownsSlot reports whether the server itself serves a slot as a master.
func (s *RedisServer) ownsSlot(slot int) bool {
	for line := range strings.Lines(s.Command("CLUSTER", "NODES")) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.Contains(fields[2], "myself,master") {
			continue
		}
		for _, r := range fields[8:] {
			first, last, ok := strings.Cut(r, "-")
			low, _ := strconv.Atoi(first)
			high := low
			if ok {
				high, _ = strconv.Atoi(last)
			}
			if !strings.HasPrefix(r, "[") && low <= slot && slot <= high {
				return true
			}
		}
	}
	return false
}

// Move moves the key's slot, with all that is in it, to another master, as resharding does; during is called
// when one half of the keys is at either.
func (c *RedisCluster) Move(during func()) {
	c.t.Helper()
	from := c.Owner()
	to := c.masters[0]
	if to == from {
		to = c.masters[1]
	}
	slot := strconv.Itoa(c.slot)
	to.Command("CLUSTER", "SETSLOT", slot, "IMPORTING", from.nodeID())
	from.Command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.nodeID())
	host, port, _ := net.SplitHostPort(to.Addr())
	move := func(count int) bool {
		keys := bulks(from.Command("CLUSTER", "GETKEYSINSLOT", slot, strconv.Itoa(count)))
		for _, key := range keys {
			if answer := from.Command("MIGRATE", host, port, key, "0", "1000"); !strings.HasPrefix(answer, "+") {
				c.t.Errorf("moving %q: %s", key, answer)
			}
		}
		return len(keys) > 0
	}
	n, _ := strconv.Atoi(strings.Trim(from.Command("CLUSTER", "COUNTKEYSINSLOT", slot), ":\r\n"))
	move(n / 2)
	during()
	for move(100) {
	}
	for _, each := range []*RedisServer{to, from, c.masters[0], c.masters[1], c.masters[2]} {
		each.Command("CLUSTER", "SETSLOT", slot, "NODE", to.nodeID())
	}
}

// bulks are the strings of a reply that is a list of them.
func bulks(reply string) (all []string) {
	lines := strings.Split(reply, "\r\n")
	for i := 2; i < len(lines); i += 2 {
		all = append(all, lines[i])
	}
	return all
}

// await fails the test when something does not come true in time.
func await(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !Until(limit, ok) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}
