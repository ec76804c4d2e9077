// Package holders stops the processes that have a descriptor open through which
// a lock was held that is lost: on_lost.
//
// The one idea: /proc tells who has what open from the kernel's memory, without
// asking the file system, so it works though the mount is frozen or dead (a stat would hang).
// A descriptor is on the mount if it has its mount id, or one of the same device in its process's own mount name
// space; its file is told by the inode number, which lockfs draws at random.
//
// Several descriptions of one file may be open, some of which hold and some of
// which wait, and /proc does not tell handles apart. But it is known which process took each lock, and which
// one waits; kcmp(2) tells which descriptors of other processes are of the same description. Where the one who took it is
// gone (flock(1) on a shell's descriptor), the holder is one of the descriptions that nobody is known to wait through:
// all of these are meant, for rather one process too many is stopped than one too few.
package holders

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/lease"
	"lockfs/config"
	"lockfs/fs/ledger"
)

const (
	// pause is between two looks for children that were born meanwhile.
	pause = 5 * time.Millisecond
	// maxLooks bounds how often new ones may turn up.
	maxLooks = 20
	// watch is how often kin are looked for while KILL is still to come.
	watch = 100 * time.Millisecond
)

// Hunt is the signalling of the holders of one loss. It is for one goroutine.
type Hunt struct {
	mount   ledger.Mount
	entries []ledger.Entry // those of inodes that somebody is to be signalled for
	inos    map[uint64]bool
	began   time.Duration // on CLOCK_BOOTTIME: the lease goes on while the machine sleeps
	log     *slog.Logger
	prey    map[int]*prey // by pid
}

// prey is a process that has been signalled.
type prey struct {
	descriptor
	pidfd int // the process itself: its number may be somebody else's by now
	what  config.OnLost
	name  string
	// stopped: it is to be killed as soon as its kin are found. Who does not run can't fork, nor end
	// before its children, whom nobody else leads to, are known.
	stopped bool
}

// Start sends the first signal to all who are to have one, and returns when no new
// ones turn up; a few milliseconds. The caller then calls Finish. log may be nil.
func Start(mount ledger.Mount, entries []ledger.Entry, log *slog.Logger) *Hunt {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &Hunt{mount: mount, inos: map[uint64]bool{}, began: lease.Now(), log: log, prey: map[int]*prey{}}
	for _, e := range entries {
		if !e.Waits && e.OnLost.Signal != 0 && e.Ino != 0 {
			h.inos[e.Ino] = true
		}
	}
	if len(h.inos) == 0 {
		return h
	}
	var pids []int
	bases := map[string]bool{}
	for _, e := range entries {
		if h.inos[e.Ino] {
			h.entries = append(h.entries, e)
			bases[path.Base(e.Name)] = true
			if !e.Waits && e.OnLost.Signal == syscall.SIGKILL {
				pids = append(pids, int(e.PID))
			}
		}
	}
	// The quick ways first, for a machine with many descriptors takes a while to look through.
	if len(pids) > 0 {
		h.meet(h.named(scan(mount, h.inos, pids, nil)))
	}
	h.meet(h.targets(scan(mount, h.inos, nil, bases), false))
	h.meet(h.targets(scan(mount, h.inos, nil, nil), true))
	h.meetKin()
	h.killStopped()
	return h
}

// meetKin signals children who were born meanwhile, until none turn up any more.
func (h *Hunt) meetKin() {
	for look, quiet := 0, 0; len(h.prey) > 0 && quiet < 2 && look < maxLooks; look++ {
		time.Sleep(pause)
		quiet++
		if h.meet(h.kin(h.scanKin())) {
			quiet = 0
		}
	}
}

// scanKin looks for those who may be kin: who shares a description sees it under one path.
func (h *Hunt) scanKin() []descriptor {
	bases := map[string]bool{}
	for _, p := range h.prey {
		bases[p.base] = true
	}
	return scan(h.mount, h.inos, nil, bases)
}

// killStopped kills those who were stopped for that.
func (h *Hunt) killStopped() {
	for _, p := range h.prey {
		if p.stopped {
			p.stopped = false
			h.send(p, syscall.SIGKILL)
		}
	}
}

// target is a process to be signalled, and why.
type target struct {
	descriptor
	ledger.Entry
}

// named returns the processes to be killed that took a lock themselves and have its file open.
func (h *Hunt) named(found []descriptor) []target {
	var all []target
	for _, d := range found {
		for _, e := range h.entries {
			if !e.Waits && e.OnLost.Signal == syscall.SIGKILL && e.Ino == d.ino && int(e.PID) == d.pid {
				all = append(all, target{d, e})
			}
		}
	}
	return all
}

// targets decides whom of those who have the files open a signal is for. all: nobody who has is missing.
func (h *Hunt) targets(found []descriptor, all bool) []target {
	var targets []target
	for ino := range h.inos {
		var holding, sparing []ledger.Entry
		for _, e := range h.entries {
			switch {
			case e.Ino != ino:
			case !e.Waits && e.OnLost.Signal != 0:
				holding = append(holding, e)
			default:
				sparing = append(sparing, e)
			}
		}
		targets = append(targets, judge(groups(found, ino), holding, sparing, all)...)
	}
	return targets
}

// groups sorts the descriptors of an inode by description.
func groups(found []descriptor, ino uint64) [][]descriptor {
	var all [][]descriptor
next:
	for _, d := range found {
		if d.ino != ino {
			continue
		}
		for i := range all {
			if same(all[i][0], d) {
				all[i] = append(all[i], d)
				continue next
			}
		}
		all = append(all, []descriptor{d})
	}
	return all
}

// judge returns the processes of the descriptions that hold, as the package's comment says. Where not all who have the file open are
// known, the one who took a lock is gone only if there is no such process any more.
func judge(groups [][]descriptor, holding, sparing []ledger.Entry, complete bool) []target {
	var all []target
	open := make([]bool, len(groups)) // nothing is known of it
	orphans := slices.Clone(holding)
	for i, g := range groups {
		mine := slices.DeleteFunc(slices.Clone(holding), func(e ledger.Entry) bool { return !takenBy(e, g) })
		orphans = slices.DeleteFunc(orphans, func(e ledger.Entry) bool { return takenBy(e, g) })
		if len(mine) > 0 {
			all = append(all, each(g, mine)...)
			continue
		}
		open[i] = !slices.ContainsFunc(sparing, func(e ledger.Entry) bool { return takenBy(e, g) })
	}
	if !complete {
		orphans = slices.DeleteFunc(orphans, func(e ledger.Entry) bool { return unix.Kill(int(e.PID), 0) != unix.ESRCH })
	}
	for i, g := range groups {
		if open[i] && len(orphans) > 0 {
			all = append(all, each(g, orphans)...)
		}
	}
	return all
}

// takenBy reports whether the entry's process is one of those that have the description.
func takenBy(e ledger.Entry, group []descriptor) bool {
	return slices.ContainsFunc(group, func(d descriptor) bool { return d.pid == int(e.PID) })
}

// each makes targets of a group, by the sternest of the entries.
func each(group []descriptor, entries []ledger.Entry) []target {
	sternest := slices.MinFunc(entries, func(a, b ledger.Entry) int { return rank(a.OnLost) - rank(b.OnLost) })
	var all []target
	for _, d := range group {
		all = append(all, target{d, sternest})
	}
	return all
}

func rank(o config.OnLost) int {
	switch {
	case o.Signal == syscall.SIGKILL:
		return 0
	case o.KillAfter > 0:
		return 1
	}
	return 2
}

// meet signals those who have not been. It returns whether there were any.
func (h *Hunt) meet(targets []target) (any bool) {
	for _, t := range targets {
		if h.prey[t.pid] != nil {
			continue
		}
		pidfd, err := unix.PidfdOpen(t.pid, 0)
		if err != nil {
			continue // gone
		}
		// Is it still the process that was found? The pidfd is of whoever had the number when it was opened.
		d := t.descriptor
		if !d.matches(h.mount, map[uint64]bool{t.ino: true}) {
			_ = unix.Close(pidfd)
			continue
		}
		p := &prey{descriptor: t.descriptor, pidfd: pidfd, what: t.OnLost, name: t.Name}
		h.prey[t.pid] = p
		any = true
		if t.OnLost.Signal == syscall.SIGKILL {
			h.stop(p)
		} else {
			h.send(p, t.OnLost.Signal)
		}
	}
	return any
}

// stop is the first half of a KILL.
func (h *Hunt) stop(p *prey) {
	_ = unix.PidfdSendSignal(p.pidfd, syscall.SIGSTOP, nil, 0) // KILL will say so
	p.stopped = true
}

func (h *Hunt) send(p *prey, s syscall.Signal) {
	err := unix.PidfdSendSignal(p.pidfd, s, nil, 0)
	switch {
	case err == nil:
		h.log.Warn("signal sent, for a lock is lost", "name", p.name, "pid", p.pid, "command", command(p.pid), "signal", unix.SignalName(s))
	case !errors.Is(err, unix.ESRCH):
		h.log.Error("a process that held a lost lock can't be signalled", "name", p.name, "pid", p.pid, "command", command(p.pid),
			"signal", unix.SignalName(s), "error", err)
	}
}

// Finish does what is to come later (TERM *then KILL after*), and returns when it is done. At the end of ctx it is done at once.
func (h *Hunt) Finish(ctx context.Context) {
	defer h.release()
	for {
		due, left := h.due()
		if left == 0 {
			return
		}
		timer := time.NewTimer(min(watch, max(0, due)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		h.meet(h.kin(h.scanKin()))
		if ctx.Err() != nil || due <= 0 {
			h.thenKill(ctx.Err() != nil)
		}
	}
}

// thenKill kills those whose time has come, or all, with their kin.
func (h *Hunt) thenKill(all bool) {
	for _, p := range h.prey {
		if p.what.KillAfter > 0 && (all || lease.Now()-h.began >= p.what.KillAfter) {
			p.what = config.OnLost{Signal: syscall.SIGKILL}
			h.stop(p)
		}
	}
	h.meetKin()
	h.killStopped()
}

// due is when the next KILL is to be sent, and how many are to come; those who have ended are done with.
func (h *Hunt) due() (next time.Duration, left int) {
	next = time.Hour
	for _, p := range h.prey {
		if p.what.KillAfter > 0 && unix.PidfdSendSignal(p.pidfd, 0, nil, 0) != nil {
			p.what.KillAfter = 0
		}
		if p.what.KillAfter > 0 {
			left++
			next = min(next, h.began+p.what.KillAfter-lease.Now())
		}
	}
	return next, left
}

// kin returns who shares a description with one who has been signalled and has not ended: children born
// since. They are treated like the sternest of those.
func (h *Hunt) kin(found []descriptor) []target {
	var all []target
	for _, d := range found {
		if h.prey[d.pid] != nil {
			continue
		}
		var like *prey
		for _, p := range h.prey {
			if d.ino == p.ino && (like == nil || rank(p.what) < rank(like.what)) && same(d, p.descriptor) {
				like = p
			}
		}
		if like != nil {
			all = append(all, target{d, ledger.Entry{Name: like.name, OnLost: like.what}})
		}
	}
	return all
}

// release closes the pidfds.
func (h *Hunt) release() {
	for pid, p := range h.prey {
		_ = unix.Close(p.pidfd)
		delete(h.prey, pid)
	}
}
