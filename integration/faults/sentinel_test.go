package faults

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"lockfs/backends/testserver"
)

// onSentinel is the back end Redis as a master and a replica under three Sentinels.
const onSentinel = "sentinel"

// sentinel is that as the server of a cluster.
type sentinel struct{ *testserver.RedisSentinel }

// addrs are the Sentinels' addresses, then the servers'. A node's way leads to all of them.
func (s sentinel) addrs() []string {
	all := s.Addrs()
	for _, each := range s.Servers() {
		all = append(all, each.Addr())
	}
	return all
}

func sentinelEntry(addrs []string) string {
	sentinels := len(addrs) - 2
	return fmt.Sprintf("{type: redis, config: {sentinel_addrs: [%s], master_name: %s, socket_timeout: 1}}",
		`"`+strings.Join(addrs[:sentinels], `", "`)+`"`, testserver.MasterName)
}

// failOver has the replica promoted without the last writes: it hears nothing of the master, which is then
// killed, or frozen and comes back as one who believes that it is the master.
func failOver(frozen bool) func(*run, *node, *rand.Rand) bool {
	return func(r *run, _ *node, rng *rand.Rand) bool {
		s := r.cluster.server.(sentinel)
		if !testserver.Until(10*time.Second, s.Ready) {
			return false // not yet over the last one
		}
		old := s.Master()
		s.Deafen()
		time.Sleep(between(rng, ttl/20, ttl/4)) // locks change hands, and the replica does not hear of it
		for _, n := range r.nodes {
			n.storm.Storm.Add(1) // those who hold now hold on
			defer n.storm.Storm.Add(-1)
		}
		time.Sleep(20 * time.Millisecond)
		if frozen {
			if err := syscall.Kill(old.PID(), syscall.SIGSTOP); err != nil {
				r.report("the master can't be frozen: %v", err)
			}
		} else {
			old.Stop()
		}
		s.AwaitFailover(old)
		time.Sleep(between(rng, 0, ttl/2))
		if frozen {
			if err := syscall.Kill(old.PID(), syscall.SIGCONT); err != nil {
				r.report("the old master can't go on: %v", err)
			}
		} else {
			old.Start()
		}
		time.Sleep(between(rng, 0, ttl)) // there are two masters now
		s.Rejoin()
		return true
	}
}
