package testserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Members is how many servers an ensemble has.
const Members = 3

// ZooKeeperEnsemble is three ZooKeeper servers that form an ensemble. It ends with the test.
//
// The servers connect to each other through ways that the test can cut (Cut); clients connect to them directly. The
// one idea: Java's plain sockets, which the servers use among themselves and not for clients, can be told to go
// through a SOCKS proxy. So each server has one of its own here, and it is known who talks to whom.
type ZooKeeperEnsemble struct {
	t       testing.TB
	net     *crossings
	servers [Members]*ZooKeeperServer
}

// Ensemble starts an ensemble, each member as ZooKeeper starts its one. syncLimit is for how many ticks of 200 ms a leader and
// its followers do without each other's answers.
func Ensemble(t testing.TB, syncLimit int) *ZooKeeperEnsemble {
	t.Helper()
	haveZooKeeper(t)
	e := &ZooKeeperEnsemble{t: t}
	for i := range e.servers {
		e.servers[i] = &ZooKeeperServer{t: t, dir: t.TempDir()}
		if err := os.Mkdir(e.servers[i].dataDir(), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(e.servers[i].dataDir(), "myid"), fmt.Append(nil, i+1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(e.Stop)
	e.net = newCrossings(t)
	var err error
	for range 5 { // another program may take a port first
		e.configure(syncLimit)
		if err = start(e.servers[:]); err == nil {
			return e
		}
		e.Stop()
	}
	t.Fatal(err)
	return nil
}

// configure gives every member its ports.
func (e *ZooKeeperEnsemble) configure(syncLimit int) {
	settings := fmt.Sprintf("initLimit=100\nsyncLimit=%d\n", syncLimit)
	for i, s := range e.servers {
		s.port = freePort(e.t)
		peers := []int{freePort(e.t), freePort(e.t)}
		settings += fmt.Sprintf("server.%d=127.0.0.1:%d:%d\n", i+1, peers[0], peers[1])
		for _, port := range peers {
			e.net.belongs(port, i)
		}
		_, port, _ := strings.Cut(e.net.addr(i), ":")
		// An empty list of exceptions: by default there is none for the loopback interface.
		s.java = []string{"-DsocksProxyHost=127.0.0.1", "-DsocksProxyPort=" + port, "-DsocksNonProxyHosts="}
	}
	for _, s := range e.servers {
		s.settings = settings
	}
}

// start starts those of servers that do not run, and waits until all of them serve.
func start(servers []*ZooKeeperServer) error {
	for _, s := range servers {
		if s.cmd == nil {
			if err := s.launch(); err != nil {
				return err
			}
		}
	}
	for _, s := range servers {
		if err := s.await(); err != nil {
			return err
		}
	}
	return nil
}

// Start starts all servers that do not run, and waits until all serve.
func (e *ZooKeeperEnsemble) Start() {
	e.t.Helper()
	e.StartSome(0, 1, 2)
}

// StartSome is Start for some of the servers.
func (e *ZooKeeperEnsemble) StartSome(members ...int) {
	e.t.Helper()
	var some []*ZooKeeperServer
	for _, i := range members {
		some = append(some, e.servers[i])
	}
	if err := start(some); err != nil {
		e.t.Fatal(err)
	}
}

// Stop kills all servers; the data stay.
func (e *ZooKeeperEnsemble) Stop() {
	for _, s := range e.servers {
		s.Stop()
	}
}

// Server is one of them; it can be stopped and started by itself. Its Start waits until it serves.
func (e *ZooKeeperEnsemble) Server(i int) *ZooKeeperServer { return e.servers[i] }

// Addrs are the servers' addresses for clients.
func (e *ZooKeeperEnsemble) Addrs() []string {
	var all []string
	for _, s := range e.servers {
		all = append(all, s.Addr())
	}
	return all
}

// Leader is the server that says that it leads, or -1. One that is cut off says so until it has noticed.
func (e *ZooKeeperEnsemble) Leader() int {
	for i, s := range e.servers {
		if strings.Contains(s.Command("srvr"), "Mode: leader") {
			return i
		}
	}
	return -1
}

// Cut cuts a server off from the others: nothing arrives, either way, until Heal; then all of it does, as
// with lost packets that are sent again. Where reset is true, the connections that there are break, too.
func (e *ZooKeeperEnsemble) Cut(i int, reset bool) { e.net.cut(i, reset) }

// Heal ends all cuts.
func (e *ZooKeeperEnsemble) Heal() { e.net.heal() }
