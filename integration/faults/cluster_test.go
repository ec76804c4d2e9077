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

// cluster is one server, and how it is named and looked into.
type cluster struct {
	kind   string
	server server
	// entry is the back end's entry in a configuration, for a node that reaches it at addr.
	entry func(addr string) string
	// left names the claims and requests that the server has.
	left func() ([]string, error)
}

const clusterName = "faults"

// newCluster starts a server. It ends with the test.
func newCluster(t testing.TB, kind string) *cluster {
	t.Helper()
	if kind == "redis" {
		s := testserver.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
		return &cluster{kind, s, redisEntry, func() ([]string, error) { return redisLeft(s.Addr()) }}
	}
	s := testserver.ZooKeeper(t)
	return &cluster{kind, s, zooKeeperEntry, func() ([]string, error) { return zooKeeperLeft(s.Addr()) }}
}

// wipe takes a stopped server's data away.
func (c *cluster) wipe() error {
	files, err := filepath.Glob(filepath.Join(c.server.Dir(), "*"))
	for _, f := range files {
		err = errors.Join(err, os.RemoveAll(f))
	}
	return err
}

func redisEntry(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
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

func zooKeeperEntry(addr string) string {
	return fmt.Sprintf("{type: zookeeper, config: {hosts: [%q], timeout: 2s}}", addr)
}

type silent struct{}

func (silent) Printf(string, ...any) {}

func zooKeeperLeft(addr string) (left []string, err error) {
	c, _, err := zk.Connect([]string{addr}, 10*time.Second, zk.WithLogger(silent{}))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	root := "/lockfs/n" + clusterName + "/locks"
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
