package faults

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ttl is the nodes' lease, the shortest that there is; but for those under Sentinels.
const ttl = 2 * time.Second

// fault is a way to break things, and to mend them again.
type fault struct {
	kind string
	// only names the back ends that it is for, with spaces between; "": any.
	only string
	// remote: it is between the nodes and a server, or that server's end.
	remote bool
	// server: it is the back end's server that is broken, not a node.
	server bool
	// worker: it is a worker that is killed; nothing is to be mended.
	worker bool
	// fatal: it ends the node's server.
	fatal bool
	// calm: it has a calm before the storm, which it raises itself.
	calm bool
	// do breaks it and mends it again. It reports whether there was something to break.
	do func(r *run, n *node, rng *rand.Rand) bool
}

var kinds = []fault{
	{kind: "holder killed", worker: true, do: killWorker(holding)},
	{kind: "waiter killed", worker: true, do: killWorker(asking)},
	{kind: "server process killed", fatal: true, do: killServer},
	{kind: "server process frozen 0.5 TTL", do: freeze(ttl / 2)},
	{kind: "server process frozen 1 TTL", fatal: true, do: freeze(ttl)},
	{kind: "server process frozen 2 TTL", fatal: true, do: freeze(2 * ttl)},
	{kind: "mount killed", do: killMount},
	{kind: "cut off, refused", remote: true, do: cut(refuses, ttl/4, 2*ttl)},
	{kind: "cut off, half open", remote: true, do: cut(swallows, ttl/4, 2*ttl)},
	{kind: "delayed by more than the lease", remote: true, do: cut(holds, ttl*11/10, 2*ttl)},
	{kind: "answers late, then cut off", remote: true, do: lateThenCut},
	{kind: "slow way", remote: true, calm: true, do: cut(slow, ttl, 3*ttl)},
	{kind: "back end restarted", remote: true, server: true, do: restart(false)},
	{kind: "back end restarted empty", server: true, only: "redis", do: restart(true)},
	{kind: "session expired", only: "zookeeper " + onEnsemble, do: expireSession},
	{kind: "leader killed", server: true, only: onEnsemble, do: killLeader},
	{kind: "minority cut off", server: true, only: onEnsemble, do: cutMinority},
	{kind: "failed over by Sentinel, last writes lost", server: true, calm: true, only: onSentinel, do: failOver(false)},
	{kind: "failed over by Sentinel from a frozen master", server: true, calm: true, only: onSentinel, do: failOver(true)},
	{kind: "disk full", server: true, only: onFile + " " + onSmallDisk, do: fillDisk},
	{kind: "disk read-only", server: true, only: onFile, do: readOnly},
	{kind: "directory removed", server: true, only: onFile, do: removeDir},
	{kind: "memory full", server: true, only: onSmallDisk, do: fillMemory},
}

// fits reports whether the fault is for a back end; where special is true, for it and not for any.
func (f fault) fits(backend string, special bool) bool {
	if f.remote && backend == onFile {
		return false
	}
	return f.only == "" && !special || slices.Contains(strings.Fields(f.only), backend)
}

// between is a random time.
func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)+1))
}

// killWorker waits a moment for one that is in this state.
func killWorker(state int64) func(*run, *node, *rand.Rand) bool {
	return func(r *run, n *node, rng *rand.Rand) bool {
		for range 300 {
			if p := r.crew.pick(n, rng, state); p != nil && r.crew.kill(p, killed) {
				return true
			}
			time.Sleep(time.Millisecond)
		}
		return false
	}
}

func killServer(_ *run, n *node, _ *rand.Rand) bool {
	fd, err := n.server()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// freeze stops the server; where that is for longer than the lease the keeper kills it meanwhile.
func freeze(d time.Duration) func(*run, *node, *rand.Rand) bool {
	return func(_ *run, n *node, _ *rand.Rand) bool {
		fd, err := n.server()
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		if unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0) != nil {
			return false
		}
		time.Sleep(d)
		err = unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
		return err == nil || errors.Is(err, unix.ESRCH)
	}
}

// killMount ends keeper and server at once, as only the machine's end does. So where lockfs
// promises to kill the holders they end first: with the machine.
func killMount(r *run, n *node, _ *rand.Rand) bool {
	if r.kills {
		r.crew.killAll(n)
		defer r.crew.up(n)
	}
	n.crash()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := n.mount() // fails while the back end is down
		if err == nil {
			return true
		}
		if time.Now().After(deadline) {
			r.report("%s can't be mounted again: %v", n.name, err)
			return true
		}
	}
}

func cut(mode network, least, most time.Duration) func(*run, *node, *rand.Rand) bool {
	return func(_ *run, n *node, rng *rand.Rand) bool {
		n.proxy.set(mode)
		time.Sleep(between(rng, least, most))
		n.proxy.set(passes)
		return true
	}
}

// lateThenCut makes the answers late for long enough for the lease to be renewed by one, and then cuts the node off: who counted a
// lease from the answer would hold on for too long.
func lateThenCut(_ *run, n *node, rng *rand.Rand) bool {
	n.proxy.set(late)
	time.Sleep(between(rng, ttl/2, ttl))
	n.proxy.set(swallows)
	time.Sleep(ttl * 3 / 2)
	n.proxy.set(passes)
	return true
}

func restart(empty bool) func(*run, *node, *rand.Rand) bool {
	return func(r *run, _ *node, rng *rand.Rand) bool {
		r.cluster.server.Stop()
		if empty {
			if err := r.cluster.wipe(); err != nil {
				r.report("the server's data can't be taken away: %v", err)
			}
		}
		time.Sleep(between(rng, 0, ttl*5/4))
		r.cluster.server.Start()
		return true
	}
}
