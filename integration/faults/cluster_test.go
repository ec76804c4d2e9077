package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"lockfs/backends/testserver"
)

// server is what the nodes of a run share.
type server interface {
	Addr() string
	Stop() // as a crash would
	Start()
	Dir() string
}

// cluster is what is called the server: one, or an ensemble, and how it is named and looked into.
type cluster struct {
	kind   string
	server server
	// entry is the back end's entry in a configuration, for a node that reaches it at addrs.
	entry func(addrs []string) string
	// left names the claims and requests that the server has.
	left func() ([]string, error)
}

const clusterName = "faults"

// newCluster starts a server. It ends with the test.
func newCluster(t testing.TB, kind string) *cluster {
	t.Helper()
	if kind == "redis" {
		s := testserver.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
		return &cluster{kind: kind, server: s, entry: redisEntry, left: func() ([]string, error) { return redisLeft(s.Addr()) }}
	}
	switch kind {
	case onSentinel:
		s := sentinel{testserver.Sentinel(t, "--appendonly", "yes", "--appendfsync", "always")}
		return &cluster{kind: kind, server: s, entry: sentinelEntry, left: func() ([]string, error) { return redisLeft(s.Addr()) }}
	case onSmallDisk:
		s := newSmallDisk(t)
		return &cluster{kind: kind, server: s, entry: redisEntry, left: func() ([]string, error) { return redisLeft(s.Addr()) }}
	case onFile:
		d := newDisk(t)
		return &cluster{kind: kind, server: d, entry: d.entry, left: d.left}
	}
	c := &cluster{kind: kind, entry: zooKeeperEntry}
	if kind == onEnsemble {
		c.server = ensemble{testserver.Ensemble(t, 5)}
	} else {
		c.server = testserver.ZooKeeper(t)
	}
	c.left = func() ([]string, error) { return zooKeeperLeft(c.addrs()) }
	return c
}

// addrs are the servers' addresses.
func (c *cluster) addrs() []string {
	switch s := c.server.(type) {
	case ensemble:
		return s.Addrs()
	case sentinel:
		return s.addrs()
	case disk:
		return nil
	}
	return []string{c.server.Addr()}
}

// lease is the nodes'. Where another server can take over it is one that outlasts that, so that there is something to lose.
func (c *cluster) lease() time.Duration {
	switch c.kind {
	case onSentinel:
		return 3 * ttl
	case onEnsemble:
		return 2 * ttl
	}
	return ttl
}

// wipe takes a stopped server's data away.
func (c *cluster) wipe() error {
	files, err := filepath.Glob(filepath.Join(c.server.Dir(), "*"))
	for _, f := range files {
		err = errors.Join(err, os.RemoveAll(f))
	}
	return err
}

func redisEntry(addrs []string) string {
	host, port, _ := net.SplitHostPort(addrs[0])
	return fmt.Sprintf("{type: redis, config: {host: %s, port: %s, socket_timeout: 1}}", host, port)
}

func redisLeft(addr string) (left []string, err error) {
	c := goredis.NewClient(&goredis.Options{Addr: addr, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	prefix := "lockfs:{" + clusterName + "}:"
	if n, err := c.Exists(ctx, prefix+"server").Result(); err != nil || n == 0 {
		return nil, fmt.Errorf("no key %sserver, so the layout has changed: %w", prefix, err)
	}
	for all := c.Scan(ctx, 0, prefix+"[gq]:*", 1000).Iterator(); all.Next(ctx); {
		left = append(left, all.Val())
	}
	return left, nil
}

func zooKeeperEntry(addrs []string) string {
	return fmt.Sprintf("{type: zookeeper, config: {hosts: [%s], timeout: 2s}}", strings.Join(addrs, ", "))
}

type silent struct{}

func (silent) Printf(string, ...any) {}

const zooKeeperRoot = "/lockfs/n" + clusterName

func zooKeeperLeft(addrs []string) (left []string, err error) {
	c, _, err := zk.Connect(addrs, 10*time.Second, zk.WithLogger(silent{}))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	root := zooKeeperRoot + "/locks"
	if _, err := c.Sync(root); err != nil {
		return nil, err
	}
	names, _, err := c.Children(root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	for _, name := range names {
		children, _, err := c.Children(root + "/" + name)
		if err != nil && !errors.Is(err, zk.ErrNoNode) {
			return nil, err
		}
		for _, child := range children {
			left = append(left, strings.TrimPrefix(name, "n")+"/"+child)
		}
	}
	return left, nil
}
