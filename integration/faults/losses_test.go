package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
)

// victims is how many nodes lose their locks in one round, each at its own moment.
const victims = 5

// victim is a node with a holder and the holder's child, who has its descriptor.
type victim struct {
	*node
	lock   string
	boards [2]*board
	cmd    *exec.Cmd
	stdin  io.WriteCloser // its end ends both
	err    testserver.Output
}

// loss is what came of one.
type loss struct {
	what     string
	toGrant  time.Duration // from the holders' last sign of life to the return of another node's lock call
	toLease  time.Duration // to the end of the lease at the server
	overtime time.Duration // how long after the lease's end the other node had to wait
}

// losses is a cluster of victims and one node that waits for what they lose.
type losses struct {
	t       *testing.T
	cluster *cluster
	dir     string
	waiter  *node
	victims []*victim
	rng     *rand.Rand
	rounds  int
}

func newLosses(t *testing.T, backend, program string) *losses {
	t.Helper()
	seed := newSeed(t)
	t.Logf("seed %d", seed)
	r := &losses{t: t, cluster: newCluster(t, backend), dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 6))}
	r.waiter = newNode(t, r.cluster, program, r.dir, "waiter", "KILL")
	for i := range victims {
		n := newNode(t, r.cluster, program, r.dir, fmt.Sprint("v", i), "KILL")
		r.victims = append(r.victims, &victim{node: n, lock: fmt.Sprint("lock", i)})
	}
	return r
}

// round lets each victim lose its lock once.
func (r *losses) round(what string) []loss {
	r.t.Helper()
	r.rounds++
	results := make([]loss, len(r.victims))
	var all sync.WaitGroup
	for i, v := range r.victims {
		r.hold(v)
		// So that they fall into all phases of the heartbeat, and not all into one moment.
		after, mode := between(r.rng, 0, ttl/2), []network{swallows, refuses, holds}[r.rng.IntN(3)]
		all.Go(func() {
			time.Sleep(after)
			results[i] = r.lose(v, what, mode)
		})
	}
	all.Wait()
	return results
}

// hold starts a holder, and its child, and waits until both are seen running.
func (r *losses) hold(v *victim) {
	r.t.Helper()
	base := filepath.Join(r.dir, fmt.Sprintf("%s.%d.", v.name, r.rounds))
	job := holderJob{Path: filepath.Join(v.dir, v.lock), Boards: [2]string{base + "parent", base + "child"}}
	text, err := json.Marshal(job)
	for i := range v.boards {
		if err == nil {
			v.boards[i], err = shared[board](job.Boards[i])
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
	v.cmd = exec.Command("/proc/self/exe")
	v.cmd.Env = append(os.Environ(), holderEnv+"="+string(text))
	v.cmd.Stderr = &v.err
	if v.stdin, err = v.cmd.StdinPipe(); err == nil {
		err = v.cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if !testserver.Until(patience, func() bool { return v.boards[0].Mark.Load() != 0 && v.boards[1].Mark.Load() != 0 }) {
		r.t.Fatalf("%s has no holder: %s", v.name, v.err.String())
	}
}

// lose takes the node's lease from it, and puts together who had the lock until when. Then all is mended.
func (r *losses) lose(v *victim, what string, mode network) loss {
	waits := r.wait(v)
	if signal, ok := map[string]unix.Signal{"frozen": unix.SIGSTOP, "killed": unix.SIGKILL}[what]; ok {
		server, err := v.server()
		if err == nil {
			err = unix.PidfdSendSignal(server, signal, nil, 0)
		}
		if err != nil {
			r.t.Errorf("%s: %v", v.name, err)
			return loss{}
		}
		defer unix.Close(server)
	} else {
		v.proxy.set(mode)
	}
	leaseEnd := int64(0)
	if r.cluster.kind != onFile {
		leaseEnd = r.leaseEnd(v)
	}
	granted := r.granted(v, waits)
	if r.cluster.kind == onFile {
		leaseEnd = granted // there is no other
	}
	state, err := v.cmd.Process.Wait()
	last := max(v.boards[0].Mark.Load(), v.boards[1].Mark.Load())
	_ = v.stdin.Close() // the child's end, had it been overlooked
	if status, _ := state.Sys().(syscall.WaitStatus); err != nil || status.Signal() != syscall.SIGKILL {
		r.t.Errorf("the holder on %s ended with %v (%v): %s", v.name, state, err, v.err.String())
	}
	r.mend(v, what)
	return loss{what, time.Duration(granted - last), time.Duration(leaseEnd - last), time.Duration(granted - leaseEnd)}
}

// wait begins to wait for the victim's lock on the other node: when it has got it comes through the channel.
func (r *losses) wait(v *victim) <-chan int64 {
	got := make(chan int64, 1)
	go func() { // ends with the mount, at the latest
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			at, err := r.take(v.lock)
			if err == nil {
				got <- at
				return
			}
			// On a machine that is very busy the waiter's own server may come too late for its lease.
			r.t.Logf("the wait for %s's lock: %v", v.name, err)
		}
	}()
	return got
}

// take waits for a lock on the other node, lets it go, and returns when it had it.
func (r *losses) take(lock string) (int64, error) {
	f, err := os.OpenFile(filepath.Join(r.waiter.dir, lock), os.O_RDONLY|os.O_CREATE, 0o666)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	return now(), err
}

func (r *losses) granted(v *victim, waits <-chan int64) int64 {
	select {
	case at := <-waits:
		return at
	case <-time.After(2 * patience):
		r.t.Errorf("%s's lock has not come free", v.name)
		return 0
	}
}

// mend makes the node one that takes locks again. A server that was frozen has been killed by now: its node is mounted anew, so that
// the keeper does not see many deaths in a row.
func (r *losses) mend(v *victim, what string) {
	v.proxy.set(passes)
	if what != "cut off" {
		if !testserver.Until(patience, func() bool { return len(serverInLog.FindAllString(v.log.String(), -1)) >= 2 }) {
			r.t.Errorf("%s has no new server: %s", v.name, v.log)
			return
		}
		err := v.stop()
		if err == nil {
			err = v.mount()
		}
		if err != nil {
			r.t.Errorf("%s, mounted anew: %v", v.name, err)
		}
	}
}

// leaseEnd is when the server takes the node's lease for over: what Redis says, on our clock, or, where it can't be asked, when the
// last bytes from the node were passed on to it, and a lease later.
func (r *losses) leaseEnd(v *victim) int64 {
	time.Sleep(50 * time.Millisecond) // what was under way has arrived
	if r.cluster.kind == "redis" {
		end, err := redisLeaseEnd(r.cluster.server.Addr(), v.name)
		if err == nil {
			return end
		}
		r.t.Logf("the lease of %s by the server: %v", v.name, err) // we came so late that it has ended
	}
	return v.proxy.lastSent() + int64(ttl)
}

func redisLeaseEnd(addr, node string) (int64, error) {
	c := goredis.NewClient(&goredis.Options{Addr: addr, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	defer c.Close()
	all, err := c.ZRangeWithScores(context.Background(), "lockfs:{"+clusterName+"}:sessions", 0, -1).Result()
	if err != nil {
		return 0, err
	}
	end := int64(0)
	for _, z := range all {
		if id, _ := z.Member.(string); strings.HasPrefix(id, node+":") {
			end = max(end, int64(z.Score))
		}
	}
	if end == 0 {
		return 0, fmt.Errorf("no session of it among %v", all)
	}
	return end*int64(time.Millisecond) - time.Now().UnixNano() + now(), nil
}

// lastSent is when bytes from the node were last passed on to the server.
func (p *proxy) lastSent() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// TestKilledInTime: on the file back end locks end with their server's process, and yet not before on_lost has been done. (Elsewhere there is a lease
// in between: TestInTime.)
func TestKilledInTime(t *testing.T) {
	r := newLosses(t, onFile, build(t, ""))
	for range 2 {
		for _, l := range r.round("killed") {
			if l.toGrant <= 0 {
				t.Errorf("the holder ran for %v after another node had its lock", -l.toGrant)
			}
		}
	}
}
