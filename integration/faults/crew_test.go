package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"lockfs/backends/testserver"
)

// crew is the workers of a run: so many on each node at any time, until stop.
type crew struct {
	r     *run
	seeds *rand.Rand // under mu

	mu      sync.Mutex
	all     []*process
	live    map[*process]bool
	down    map[*node]bool
	stopped bool
	keep    sync.WaitGroup
}

// process is a worker as a process.
type process struct {
	name  string
	node  *node
	cmd   *exec.Cmd
	in    io.WriteCloser
	err   testserver.Output
	board *board
	log   string
	done  chan struct{} // closed when it has ended
	ended int64         // when that was seen; to be read after done
	death ending        // killed where the harness killed it; under crew.mu
}

func newCrew(r *run, seed uint64) *crew {
	return &crew{r: r, seeds: rand.New(rand.NewPCG(seed, 2)), live: map[*process]bool{}, down: map[*node]bool{}}
}

// keepOne sees to it that there is always one more worker on a node, in a place of its own; stop ends it.
func (c *crew) keepOne(n *node, place int) {
	c.keep.Go(func() {
		for {
			p, err := c.start(n, place)
			if errors.Is(err, errDown) {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			if err != nil {
				c.r.report("a worker can't be started: %v", err)
			}
			if p == nil {
				return
			}
			<-p.done
			c.mu.Lock()
			delete(c.live, p)
			byUs := p.death != ""
			c.mu.Unlock()
			if state := p.cmd.ProcessState; !state.Success() && !byUs {
				status, _ := state.Sys().(syscall.WaitStatus)
				if !c.r.kills || status.Signal() != syscall.SIGKILL {
					c.r.report("worker %s ended with %v: %s", p.name, state, p.err.String())
					return
				}
				c.r.count("holder stopped by on_lost")
			}
		}
	})
}

// ownName is the name that is nearly for the worker in that place alone.
func ownName(n *node, place int) string { return fmt.Sprint(n.name, ".", place) }

// errDown: the machine that a node stands for is down, and no worker runs on it.
var errDown = errors.New("the node is down")

// start starts a worker; nil after stop.
func (c *crew) start(n *node, place int) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil, nil
	}
	if c.down[n] {
		return nil, errDown
	}
	p := &process{name: fmt.Sprintf("%s/w%d", n.name, len(c.all)), node: n, done: make(chan struct{})}
	base := filepath.Join(c.r.dir, fmt.Sprintf("w%d", len(c.all)))
	p.log = base + ".log"
	var err error
	if p.board, err = shared[board](base + ".board"); err != nil {
		return nil, err
	}
	var others []string
	for _, other := range c.r.nodes {
		for i := range workersOfNode {
			others = append(others, ownName(other, i))
		}
	}
	text, err := json.Marshal(job{Mount: n.dir, Outside: n.outside, Names: []string{"a", "b", "c"}, Own: ownName(n, place), Others: others, Seed: c.seeds.Uint64(), Kills: c.r.kills,
		Log: p.log, Board: base + ".board", Storm: n.stormFile, Longest: 5 * ttl / 2})
	if err != nil {
		return nil, err
	}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), workerEnv+"="+string(text), "GORACE=atexit_sleep_ms=0", "LC_ALL=C")
	p.cmd.Stderr = &p.err
	p.cmd.WaitDelay = patience // a flock(1) of it may have its standard error
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		_ = p.cmd.Wait() // the state says it all
		p.ended = now()
		close(p.done)
	}()
	c.all = append(c.all, p)
	c.live[p] = true
	return p, nil
}

// pick returns a worker of the node that is in this state just now, or nil.
func (c *crew) pick(n *node, rng *rand.Rand, state int64) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var fit []*process
	for _, p := range c.all { // in an order that the seed repeats
		if c.live[p] && p.node == n && p.board.State.Load() == state {
			fit = append(fit, p)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[rng.IntN(len(fit))]
}

// kill kills a worker; false when it had ended.
func (c *crew) kill(p *process, how ending) bool {
	c.mu.Lock()
	if !c.live[p] || p.cmd.Process.Signal(syscall.SIGKILL) != nil {
		c.mu.Unlock()
		return false
	}
	p.death = how
	c.mu.Unlock()
	<-p.done
	return true
}

// up lets workers run on a node again after killAll.
func (c *crew) up(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.down, n)
}

// killAll kills all workers of a node, and none starts until up.
func (c *crew) killAll(n *node) {
	c.mu.Lock()
	c.down[n] = true
	var all []*process
	for p := range c.live {
		if p.node == n {
			all = append(all, p)
		}
	}
	c.mu.Unlock()
	for _, p := range all {
		c.kill(p, killed)
	}
}

// grants is how often the workers of a node have got a lock.
func (c *crew) grants(n *node) (sum int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.all {
		if p.node == n {
			sum += p.board.Grants.Load()
		}
	}
	return sum
}

// stop tells all workers to end, and reports those whose request does not end within the limit.
func (c *crew) stop(limit time.Duration) {
	c.mu.Lock()
	c.stopped = true
	live := make([]*process, 0, len(c.live))
	for p := range c.live {
		_ = p.in.Close() // it may have ended
		live = append(live, p)
	}
	c.mu.Unlock()
	end := time.After(limit)
	for _, p := range live {
		select {
		case <-p.done:
			continue
		case <-end:
			end = time.After(0)
		}
		c.r.report("a request of %s does not end: state %d, %v after the last fault; its last event: %s", p.name, p.board.State.Load(), limit, lastEvent(p.log))
		c.kill(p, killed)
	}
	c.keep.Wait()
}

// lastEvent is the last that a worker wrote down.
func lastEvent(log string) string {
	events, err := readEvents(log)
	if err != nil || len(events) == 0 {
		return fmt.Sprint("none: ", err)
	}
	return fmt.Sprintf("%+v", events[len(events)-1])
}

// records is what the workers wrote down. They have all ended.
func (c *crew) records() (all []record) {
	for _, p := range c.all {
		events, err := readEvents(p.log)
		if err != nil {
			c.r.report("%v", err)
		}
		r := record{owner: p.name, kills: c.r.kills, death: p.death, ended: p.ended, events: events, marked: p.board.Marked.Load(), mark: p.board.Mark.Load()}
		if r.death == "" {
			r.death = stopped
		}
		all = append(all, r)
	}
	return all
}
