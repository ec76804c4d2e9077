package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"lockfs/backends/testserver"
	"lockfs/config"
)

// host stands for the test that package testserver wants to know.
type host struct {
	testing.TB // nil: only what follows may be called
	cleanups   []func()
}

// failure is what a server that could not be started panics with.
type failure string

func (*host) Helper() {}

func (*host) Fatal(args ...any) { panic(failure(fmt.Sprint(args...))) }

func (*host) Fatalf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

func (h *host) Cleanup(f func()) { h.cleanups = append(h.cleanups, f) }

func (h *host) TempDir() string {
	dir, err := os.MkdirTemp("", "lockfs-sim-")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (h *host) end() {
	for i := len(h.cleanups) - 1; i >= 0; i-- {
		h.cleanups[i]()
	}
}

// server is a private server and what it says about itself.
type server struct {
	kind   string
	config config.Backend
	pid    int
	// counts is how many requests it has got, and how many messages it has sent of itself.
	counts func() (requests, messages int, err error)
	// memory is what its data take, in bytes.
	memory func() (int, error)
}

func startServer(t testing.TB, kind string) (s *server, err error) {
	defer func() {
		if failed := recover(); failed != nil {
			why, ours := failed.(failure)
			if !ours {
				panic(failed)
			}
			err = fmt.Errorf("%s", why)
		}
	}()
	switch kind {
	case "redis":
		return startRedis(t), nil
	case "zookeeper":
		return startZooKeeper(t), nil
	}
	return nil, fmt.Errorf("there is no server of this kind: redis and zookeeper are")
}

func startRedis(t testing.TB) *server {
	r := testserver.Redis(t, "--maxclients", "50000")
	c := goredis.NewClient(&goredis.Options{Addr: r.Addr(),
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	t.Cleanup(func() { _ = c.Close() })
	info := func(section string) (map[string]string, error) {
		text, err := c.Info(context.Background(), section).Result()
		return pairs(text, ":"), err
	}
	return &server{kind: "redis", pid: r.PID(),
		config: config.Backend{Redis: &config.Redis{Network: "tcp", Address: r.Addr(), Timeout: 5 * time.Second}},
		counts: func() (requests, messages int, err error) {
			stats, err := info("commandstats")
			calls := func(command string) int {
				n, _, _ := strings.Cut(strings.TrimPrefix(stats["cmdstat_"+command], "calls="), ",")
				count, _ := strconv.Atoi(n) // not called yet: 0
				return count
			}
			return calls("evalsha") + calls("eval") + calls("ping"), calls("publish"), err
		},
		memory: func() (int, error) {
			m, err := info("memory")
			if err != nil {
				return 0, err
			}
			return strconv.Atoi(m["used_memory"])
		}}
}

func startZooKeeper(t testing.TB) *server {
	z := testserver.ZooKeeper(t)
	// The four-letter commands are asked for directly: there must not be one session more.
	return &server{kind: "zookeeper", pid: z.PID(),
		config: config.Backend{ZooKeeper: &config.ZooKeeper{Hosts: []string{z.Addr()}, Timeout: 10 * time.Second}},
		counts: func() (requests, messages int, err error) {
			stats := pairs(z.Command("srvr"), ": ")
			received, err := strconv.Atoi(stats["Received"])
			if err != nil {
				return 0, 0, fmt.Errorf("ZooKeeper's count of requests: %w", err)
			}
			sent, err := strconv.Atoi(stats["Sent"])
			return received, sent - received, err
		},
		// What is left after a collection: its JVM never gives memory back by itself.
		memory: func() (int, error) { return liveHeap(z.PID()) }}
}

// liveHeap is the size of all live objects of a JVM, as jcmd's last line says: "Total  123  45678".
func liveHeap(pid int) (int, error) {
	out, err := exec.Command("jcmd", strconv.Itoa(pid), "GC.class_histogram").Output()
	if err != nil {
		return 0, fmt.Errorf("jcmd (Debian's package default-jdk-headless): %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var instances, size int
	if _, err := fmt.Sscanf(lines[len(lines)-1], "Total %d %d", &instances, &size); err != nil {
		return 0, fmt.Errorf("jcmd's last line is %q: %w", lines[len(lines)-1], err)
	}
	return size, nil
}

// pairs reads lines of keys and values.
func pairs(text, separator string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), separator); ok {
			all[key] = value
		}
	}
	return all
}

// processor is how much time the server has had on a processor.
func (s *server) processor() (sum time.Duration, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		running, _, _ := bytes.Cut(data, []byte(" "))
		ns, err := strconv.ParseInt(string(running), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
