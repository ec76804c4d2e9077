// Package keeper is the small process beside the server of a mount: it mounts,
// and does what has to be done for those who hold locks when the server can't.
//
// The one idea: a lock on a lease is safe only while somebody watches the clock, and the
// server, which can be killed, stopped, starved or stuck, is the wrong one to rely on. So the keeper opens
// /dev/fuse, mounts, makes a page of shared memory (package ledger), in which the server writes until when its lease
// lasts and who holds what, and starts the server with both. It touches
// neither back end nor mount, so nothing can make it wait.
//
//   - Past the lease's end, unless the server says in the page that it is at it: the keeper does what on_lost says to the
//     holders, then aborts the mount, kills the server, and mounts afresh with a new one. Where the server does say so, the keeper waits until
//     the time by which it is to be done, but not with KILL: for that nobody has to wait, and to be killed twice does no harm.
//   - When the server dies: the same, at once, for nobody renews its lease any more. A lease that ends with its process (the file back end's) is one that
//     the keeper holds as well until then (guard).
//   - When the keeper dies: the pipe that it holds ends, at which the server stops the holders, says goodbye and unmounts.
//   - At SIGTERM the keeper ends that pipe itself.
//
// What was held is lost visibly: the old mount is dead to those who have files open on it.
//
// # A later step: the server takes over the living mount
//
// The keeper holds the device all the time, so the mount outlives its server as it is (docs/facts.md,
// 'A mount can outlive its server'). What is missing: the page keeps the server's handles, owners, node numbers
// and its session, too, and the first INIT request; then a death calls
// start with the same device and page instead of bury, for as long as the page's deadline allows; bury remains for when it is past.
package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"lockfs/backends"
	"lockfs/backends/lease"
	"lockfs/cmd/internal/daemon"
	"lockfs/config"
	"lockfs/fs/holders"
	"lockfs/fs/ledger"
	"lockfs/fs/mountpoint"
)

const (
	// look is how often the clock is looked at: timers don't count the time asleep, leases do.
	look = 100 * time.Millisecond
	// quickDeath is how long a server has to live for its death not to count as one of a row.
	quickDeath = 10 * time.Second
	// maxQuickDeaths in a row are the end.
	maxQuickDeaths = 5
	// reap is how long a killed server may take to go; one that hangs in the kernel is left behind.
	reap = 5 * time.Second
)

// Keeper says how to mount and serve. All fields but HangUp and Reopen are needed.
type Keeper struct {
	Attachment mountpoint.Attachment
	// Command makes a new server's command: Receive is what it calls first. Its files but the standard ones are the keeper's.
	Command func() *exec.Cmd
	// Brief is what the server is told, as JSON.
	Brief any
	// Grace is how long after the lease's end the server may take to say that it is at it.
	Grace time.Duration
	// Goodbye bounds the server's end when it is told to go.
	Goodbye time.Duration
	// Ready is called once, when the first server serves.
	Ready func() error
	// HangUp is for each server that is to open its log again; nil: never.
	HangUp <-chan os.Signal
	// Reopen is called then, for the keeper's own log.
	Reopen func()
	Log    *slog.Logger

	hunts sync.WaitGroup
}

var errStill = errors.New("the server stands still: its lease ran out, and it did nothing about it, or did not come to the end")

// server is a server process, and what the keeper has in common with it.
type server struct {
	cmd    *exec.Cmd
	device *os.File
	mount  mountpoint.Mount
	page   *ledger.Ledger
	life   *os.File // its end tells the server to go
	guard  *guard
	answer <-chan error // of the start
	ended  chan struct{}
	err    error // how it ended; set before ended is closed
	began  time.Time
	ready  bool
	helped time.Duration // the deadline past which the keeper has sent KILL beside the server
}

// Run mounts and returns when the mount is gone for good: unmounted by anybody, at ctx's end, or given
// up (an error). The first server's failure to start is the error that it gave (*daemon.FailedError).
func (k *Keeper) Run(ctx context.Context) error {
	defer k.hunts.Wait() // each ends by itself in the time that on_lost names
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := run(keeperPriority); err != nil {
		k.Log.Debug("on a busy machine the keeper may come late", "reason", err)
	}
	backend, dead := -1, mountpoint.Mount{}
	for quick, first := 0, true; ; first = false {
		s, err := k.start(ctx, backend, dead, time.Duration(max(0, quick-1))*200*time.Millisecond)
		if err != nil {
			return err
		}
		reason := k.watch(ctx, cancel, s, first)
		if index, ok := s.page.Backend(); ok {
			backend = index
		}
		final := reason == nil || first && !s.ready || ctx.Err() != nil || s.unmounted()
		k.bury(s, reason, final)
		if final {
			return reason
		}
		dead = s.mount
		if quick++; time.Since(s.began) > quickDeath || errors.Is(reason, errStill) {
			quick = 1 // who stood still, on a starved machine, had a lease before
		}
		if quick >= maxQuickDeaths {
			k.detach(dead)
			k.Log.Error("the server dies again and again: given up, nothing is mounted any more; look above for why, and mount again", "deaths", quick)
			return fmt.Errorf("the server died %d times in a row, at last: %w", quick, reason)
		}
	}
}

// start mounts, in place of the dead mount of the server before, if there was one, and starts a server, on the back end that
// that had chosen. Mounted it is at once: those who come during the pause wait for the new server, and don't lock what lies below.
func (k *Keeper) start(ctx context.Context, backend int, dead mountpoint.Mount, pause time.Duration) (s *server, err error) {
	s = &server{ended: make(chan struct{}), began: time.Now(), helped: -1}
	if s.page, err = ledger.New(); err != nil {
		return nil, err
	}
	if backend >= 0 {
		s.page.SetBackend(backend)
	}
	if dead.Point == "" {
		s.device, err = mountpoint.Attach(k.Attachment)
	} else {
		s.device, err = mountpoint.Replace(k.Attachment, dead)
	}
	if err != nil {
		return nil, errors.Join(err, s.page.Close())
	}
	var found bool
	if s.mount, found, err = mountpoint.Find(k.Attachment.Point); err == nil && !found {
		err = fmt.Errorf("mounted on %s, which is not in the list of mounts", k.Attachment.Point)
	}
	if err == nil {
		s.page.SetMount(s.mount.Ledger())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		err = k.spawn(s)
	}
	if err != nil {
		return nil, errors.Join(err, s.device.Close(), s.mount.Detach(), s.page.Close())
	}
	return s, nil
}

// unmounted reports whether somebody has unmounted: then there is nothing to be made anew.
func (s *server) unmounted() bool {
	now, found, err := mountpoint.Find(s.mount.Point)
	return err == nil && (!found || now.ID != s.mount.ID)
}

// spawn starts the server process. Receive is its other end.
func (k *Keeper) spawn(s *server) error {
	answer, theirAnswer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	defer theirAnswer.Close()
	theirLife, life, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("start the server: %w", err), answer.Close())
	}
	defer theirLife.Close()
	guard, theirGuard, err := newGuard()
	if err != nil {
		return errors.Join(err, answer.Close(), life.Close())
	}
	defer theirGuard.Close()
	s.life, s.guard, s.cmd = life, guard, k.Command()
	s.cmd.ExtraFiles = []*os.File{theirAnswer, s.device, s.page.File(), theirLife, theirGuard}
	s.cmd.Env = append(s.cmd.Environ(), daemon.EnvReady+"=3")
	if err := s.cmd.Start(); err != nil {
		guard.letGo()
		return errors.Join(fmt.Errorf("start the server: %w", err), answer.Close(), life.Close())
	}
	go guard.receive() // ends with the server, or with letGo
	answers := make(chan error, 1)
	s.answer = answers
	go func() { // ends with the server
		answers <- daemon.Answer(answer)
		_ = answer.Close()
	}()
	go func() { // ends when the server has read it, or life is closed
		_ = json.NewEncoder(life).Encode(k.Brief) // a server that can't read it says so
	}()
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	return nil
}

// watch returns when the server has ended, well (nil) or not, or has to be ended.
func (k *Keeper) watch(ctx context.Context, cancel context.CancelCauseFunc, s *server, first bool) error {
	var failure error
	answer, stop := s.answer, ctx.Done()
	var patience <-chan time.Time
	for {
		timer := time.NewTimer(min(look, max(0, min(k.due(s.page), k.helpDue(s))-lease.Now())))
		select {
		case err := <-answer:
			answer = nil // there is one only
			failure = err
			if s.ready = err == nil; s.ready && first {
				if err := k.Ready(); err != nil { // nobody wants it any more
					cancel(err)
				}
			}
		case <-s.ended:
			timer.Stop()
			return k.outcome(ctx, s, failure)
		case <-stop:
			k.Log.Info("unmounting", "reason", context.Cause(ctx))
			stop = nil
			patience = time.After(k.Goodbye)
			_ = s.life.Close()
		case <-patience:
			return errors.New("the server does not go")
		case signal := <-k.HangUp:
			k.Reopen()
			_ = s.cmd.Process.Signal(signal) // it may have ended
		case <-timer.C:
			if !s.ready && s.unmounted() { // the server, which waits for its back end, does not see that
				return errors.New("unmounted before a server was ready")
			}
			if lease.Now() >= k.due(s.page) {
				return errStill
			}
			if lease.Now() >= k.helpDue(s) {
				k.help(s)
			}
		}
		timer.Stop()
	}
}

// outcome says how a server that has ended did.
func (k *Keeper) outcome(ctx context.Context, s *server, failure error) error {
	if failure == nil && !s.ready {
		failure = <-s.answer // at its end by now
		s.ready = failure == nil
	}
	var failed *daemon.FailedError
	switch {
	case errors.As(failure, &failed) && !s.ready:
		failed.ExitCode = max(1, s.cmd.ProcessState.ExitCode())
		return failed
	case s.err == nil:
		return failure
	case ctx.Err() != nil:
		return fmt.Errorf("the server did not end well: %w", s.err)
	}
	return fmt.Errorf("the server died: %w", s.err)
}

// due is when the keeper has to act.
func (k *Keeper) due(page *ledger.Ledger) time.Duration {
	if busy := page.Busy(); busy != backends.NoDeadline {
		return busy
	}
	if deadline := page.Deadline(); deadline != backends.NoDeadline {
		return deadline + k.Grace
	}
	return backends.NoDeadline
}

// helpDue is when the keeper sends KILL beside the server that is at it: when it would have done all had the server not been.
func (k *Keeper) helpDue(s *server) time.Duration {
	deadline := s.page.Deadline()
	if deadline == backends.NoDeadline || deadline == s.helped || s.page.Busy() == backends.NoDeadline {
		return backends.NoDeadline
	}
	return deadline + k.Grace
}

// help kills whom the server has not come to yet, once for each deadline. All else that on_lost says remains the server's.
func (k *Keeper) help(s *server) {
	s.helped = s.page.Deadline()
	entries, err := s.page.Entries()
	if err != nil {
		k.Log.Error("it is not known who holds locks: the server is left alone with on_lost", "error", err)
		return
	}
	for i := range entries {
		if entries[i].OnLost.Signal != syscall.SIGKILL {
			entries[i].OnLost = config.OnLost{}
		}
	}
	holders.Start(s.mount.Ledger(), entries, k.Log).Finish(context.Background()) // of KILL nothing comes later
}

// bury ends what is left of a server and its mount. reason is nil where it ended well: then nothing is. Those who hold come
// first: they are what is dangerous. final: there will be no other, so that the mount is taken away, too.
func (k *Keeper) bury(s *server, reason error, final bool) {
	if reason != nil {
		if !final {
			k.Log.Error("all locks are lost, and the mount is made anew", "reason", reason, "server", s.cmd.Process.Pid)
		}
		k.lose(s, reason)
		if err := s.mount.Abort(); err != nil {
			k.Log.Debug("closing the device will have to do", "error", err)
		}
		_ = s.cmd.Process.Kill() // it may be gone
	} else {
		s.guard.letGo()
	}
	_ = s.device.Close() // the last one, when the server is gone: nothing can be written to it
	_ = s.life.Close()   // it may be closed
	select {
	case <-s.ended:
	case <-time.After(reap):
		k.Log.Error("the killed server does not go; it is left behind", "server", s.cmd.Process.Pid)
	}
	if final && reason != nil { // else it is gone, and somebody may have mounted anew, which the kernel may give the same id
		k.detach(s.mount)
	}
	_ = s.page.Close() // a mapping that was made can be undone
}

func (k *Keeper) detach(m mountpoint.Mount) {
	if err := m.Detach(); err != nil {
		k.Log.Error("the dead mount can't be taken away", "mountpoint", m.Point, "error", err)
	}
}

// lose does what on_lost says, and logs each lock. What is to come later it does in the background.
func (k *Keeper) lose(s *server, reason error) {
	entries, err := s.page.Entries()
	if err != nil {
		k.Log.Error("it is not known who holds locks: on_lost can't be done", "error", err)
	}
	if s.page.Busy() != backends.NoDeadline {
		hurry(entries)
	}
	hunt := holders.Start(s.mount.Ledger(), entries, k.Log)
	k.hunts.Go(func() {
		hunt.Finish(context.Background())
		s.guard.letGo() // from here on others may get the locks
	})
	for _, e := range entries {
		if !e.Waits {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", e.PID)) // may be gone
			k.Log.Error("lock lost", "name", e.Name, "mode", e.Mode.String(), "pid", e.PID,
				"command", strings.TrimSpace(string(comm)), "token", e.Token, "on_lost", e.OnLost.String(), "reason", reason)
		}
	}
}

// hurry is for when the server had begun and did not come to the end: the time for what is gentle is used up.
func hurry(entries []ledger.Entry) {
	for i := range entries {
		if entries[i].OnLost.KillAfter > 0 {
			entries[i].OnLost = config.OnLost{Signal: syscall.SIGKILL}
		}
	}
}
