package fs

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"lockfs/backends/lease"
	"lockfs/config"
	"lockfs/fs/holders"
	"lockfs/fs/ledger"
	"lockfs/fs/locks"
	mounts "lockfs/fs/mountpoint"
)

// guard keeps the ledger, and does what on_lost says when this server notices
// a loss itself. A keeper process that has the ledger too does it when the
// server can't.
//
// Invariant: while this server is at it, the ledger says so (SetBusy), with the time by which it
// is done; whatever becomes of the server, from then on it is the keeper's.
type guard struct {
	config *config.Config
	ledger *ledger.Ledger
	own    bool // the ledger is to be closed
	log    *slog.Logger
	ctx    context.Context // ends with close
	stop   context.CancelFunc
	hunts  sync.WaitGroup // those that are to finish

	mu    sync.Mutex
	open  map[uint64]description // by handle, of those that are open or hold
	waits map[uint64]ledger.Slot // by call
	busy  []time.Duration        // until when each hunt that runs will be done
	full  bool                   // the ledger took no more; said once
}

// description is what is known of a handle.
type description struct {
	ino  uint64      // 0 while its open has not returned
	slot ledger.Slot // that of what it holds, noSlot where it holds nothing
}

const noSlot ledger.Slot = -1

var _ locks.Watcher = (*guard)(nil)

// newGuard uses the ledger, or, where that is nil, one of its own.
func newGuard(c *config.Config, l *ledger.Ledger, log *slog.Logger) (*guard, error) {
	g := &guard{config: c, ledger: l, own: l == nil, log: log,
		open: map[uint64]description{}, waits: map[uint64]ledger.Slot{}}
	if g.own {
		var err error
		if g.ledger, err = ledger.New(); err != nil {
			return nil, err
		}
	}
	g.ctx, g.stop = context.WithCancel(context.Background())
	return g, nil
}

// close ends what runs: what is still to be killed is killed at once. The table is closed before.
func (g *guard) close() {
	g.stop()
	g.hunts.Wait()
	if g.own {
		_ = g.ledger.Close() // a mapping that was made can be undone
	}
}

// mounted notes which mount the descriptors are to be looked for on.
func (g *guard) mounted(point string) {
	m, found, err := mounts.Find(point)
	if err != nil || !found {
		g.log.Warn("the mount is not in the list of mounts: on_lost will find no processes", "mountpoint", point, "error", err)
		return
	}
	g.ledger.SetMount(m.Ledger())
}

// of returns what is known of a handle. The caller holds g.mu.
func (g *guard) of(handle uint64) description {
	if d, ok := g.open[handle]; ok {
		return d
	}
	return description{slot: noSlot}
}

// note changes what is known of a handle. The caller holds g.mu.
func (g *guard) note(handle uint64, d description) {
	if d == (description{slot: noSlot}) {
		delete(g.open, handle)
	} else {
		g.open[handle] = d
	}
}

// opened says which inode the kernel shows for a handle's descriptors, before the open returns.
func (g *guard) opened(handle, ino uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.of(handle)
	d.ino = ino
	g.note(handle, d)
	if d.slot != noSlot {
		g.ledger.SetIno(d.slot, ino)
	}
}

// released says that a handle's descriptors are closed.
func (g *guard) released(handle uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.of(handle)
	d.ino = 0
	g.note(handle, d)
}

// Holds implements locks.Watcher.
func (g *guard) Holds(h locks.Holding) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.of(h.Handle)
	if d.slot != noSlot {
		g.ledger.SetHolder(d.slot, h.PID, h.Mode, h.Token)
		return
	}
	d.slot = g.add(ledger.Entry{Ino: d.ino}, h)
	g.note(h.Handle, d)
}

// add enters what is known; noSlot where the ledger is full. The caller holds g.mu.
func (g *guard) add(e ledger.Entry, h locks.Holding) ledger.Slot {
	e.Name, e.Handle, e.PID, e.Mode, e.Token = h.Name, h.Handle, h.PID, h.Mode, h.Token
	e.OnLost = g.config.For(h.Name).OnLost
	slot, err := g.ledger.Add(e)
	if err == nil {
		return slot
	}
	if !g.full {
		g.full = true
		g.log.Error("the keeper can't be told of more locks: were this server to die, on_lost would not be done to their holders", "name", h.Name, "error", err)
	}
	return noSlot
}

// Frees implements locks.Watcher.
func (g *guard) Frees(handle uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.of(handle)
	if d.slot == noSlot {
		return
	}
	g.ledger.Free(d.slot)
	d.slot = noSlot
	g.note(handle, d)
}

// Waits implements locks.Watcher. Waiters are of interest only where holders are to be
// told from them.
func (g *guard) Waits(call uint64, w locks.Holding) {
	if g.config.For(w.Name).OnLost.Signal == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.of(w.Handle)
	if d.slot != noSlot {
		return // it holds as well, and is not to be spared
	}
	if slot := g.add(ledger.Entry{Waits: true, Ino: d.ino}, w); slot != noSlot {
		g.waits[call] = slot
	}
}

// WaitsNoMore implements locks.Watcher.
func (g *guard) WaitsNoMore(call uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slot, ok := g.waits[call]; ok {
		g.ledger.Free(slot)
		delete(g.waits, call)
	}
}

// Until implements locks.Watcher.
func (g *guard) Until(deadline time.Duration) { g.ledger.SetDeadline(deadline) }

// Lost implements locks.Watcher: the first signal is sent when it returns. The entries stay in
// the ledger until all is done.
func (g *guard) Lost(error) {
	hunt, done := g.hunt()
	g.hunts.Go(func() {
		defer done()
		hunt.Finish(g.ctx)
	})
}

// closing stops those who hold before their locks are released at the node's end. ctx bounds
// it: at its end KILL comes at once.
func (g *guard) closing(ctx context.Context) {
	hunt, done := g.hunt()
	defer done()
	hunt.Finish(ctx)
}

func (g *guard) hunt() (hunt *holders.Hunt, done func()) {
	entries, err := g.ledger.Entries()
	if err != nil {
		g.log.Error("on_lost can't be done", "error", err)
	}
	var after time.Duration
	for _, e := range entries {
		if !e.Waits {
			after = max(after, e.OnLost.KillAfter)
		}
	}
	done = g.begin(g.start() + max(after, config.TimeOnLost(g.config.SessionTTL)) + config.GraceOnLost(g.config.SessionTTL))
	return holders.Start(g.ledger.Mount(), entries, g.log), done
}

// start is from when the time for on_lost counts: now, or the lease's end, if that has just been; this server may come late to it, and
// the other node does not wait for that.
func (g *guard) start() time.Duration {
	now, end := lease.Now(), g.ledger.Deadline()
	if end < now && end > now-config.TimeOnLost(g.config.SessionTTL) {
		return end
	}
	return now
}

// takeHeld returns what is held, and makes it that of no handle. The caller holds g.mu.
func (g *guard) takeHeld() (slots []ledger.Slot) {
	for handle, d := range g.open {
		if d.slot != noSlot {
			slots = append(slots, d.slot)
			d.slot = noSlot
			g.note(handle, d)
		}
	}
	return slots
}

// begin says in the ledger that this server is at it; done takes that back, and strikes
// out what was held when it began.
func (g *guard) begin(until time.Duration) (done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lost := g.takeHeld()
	g.busy = append(g.busy, until)
	g.ledger.SetBusy(slices.Min(g.busy))
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, slot := range lost {
			g.ledger.Free(slot)
		}
		i := slices.Index(g.busy, until)
		g.busy = slices.Delete(g.busy, i, i+1)
		next := time.Duration(0)
		if len(g.busy) > 0 {
			next = slices.Min(g.busy)
		}
		g.ledger.SetBusy(next)
	}
}
