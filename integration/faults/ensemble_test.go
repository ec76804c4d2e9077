package faults

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends/testserver"
)

// onEnsemble is the back end ZooKeeper on three servers.
const onEnsemble = "ensemble"

// ensemble is one as the server of a cluster.
type ensemble struct{ *testserver.ZooKeeperEnsemble }

// Addr is one of its servers'.
func (e ensemble) Addr() string { return e.Addrs()[0] }

// Dir is that server's.
func (e ensemble) Dir() string { return e.Server(0).Dir() }

// killLeader kills the server that leads, and starts it again.
func killLeader(r *run, _ *node, rng *rand.Rand) bool {
	e := r.cluster.server.(ensemble)
	leader := e.Leader()
	if leader < 0 {
		return false
	}
	e.Server(leader).Stop()
	time.Sleep(between(rng, 0, 3*ttl/2))
	e.Server(leader).Start()
	return true
}

// cutMinority cuts the server that the node uses off from the other two, be it the leader or not. Its clients reach it all the time.
func cutMinority(r *run, n *node, rng *rand.Rand) bool {
	used := n.proxy.using()
	if len(used) == 0 {
		return false
	}
	e := r.cluster.server.(ensemble)
	e.Cut(used[rng.IntN(len(used))], rng.IntN(2) == 0)
	time.Sleep(between(rng, ttl/4, 2*ttl))
	e.Heal()
	return true
}

// expireSession cuts the node off until the server has forgotten its session, however long that takes: longer than the
// lease where a new leader begins to count anew.
func expireSession(r *run, n *node, rng *rand.Rand) bool {
	c, _, err := zk.Connect(r.cluster.addrs(), 10*time.Second, zk.WithLogger(silent{}))
	if err != nil {
		r.report("%v", err)
		return false
	}
	defer c.Close()
	sessions := sessionsOf(c, n.name)
	if len(sessions) == 0 {
		return false
	}
	n.proxy.set([]network{refuses, swallows, holds}[rng.IntN(3)])
	defer n.proxy.set(passes)
	lives := func(path string) bool {
		there, _, err := c.Exists(path)
		return there || err != nil
	}
	// A server that is down expires nothing.
	return testserver.Until(15*time.Second, func() bool { return !slices.ContainsFunc(sessions, lives) })
}

// sessionsOf are the znodes of a node's session, and of those before it that live yet; none where the server does not answer.
func sessionsOf(c *zk.Conn, name string) (paths []string) {
	root := zooKeeperRoot + "/sessions"
	ids, _, err := c.Children(root)
	if err != nil {
		return nil
	}
	for _, id := range ids {
		if data, _, err := c.Get(root + "/" + id); err == nil && string(data) == name {
			paths = append(paths, root+"/"+id)
		}
	}
	return paths
}
