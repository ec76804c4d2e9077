// Package file keeps the locks of one machine in a directory, without a server.
//
// The one idea: the state of a name is a small file that holds the same queue
// as every back end's (package queue), changed under a lock that nobody keeps
// for longer than the change takes. Waiting is not done in flock(2), which knows
// no order, no ranges and no cancelling, but on a message from whoever lets go.
//
//	PATH/CLUSTER/tokens          the last fencing token of each of 64 shards, whose bytes are
//	                             locked while a state changes; the name's hash says which shard
//	PATH/CLUSTER/boot-ID/locks/  one file a name in use: its queue.State
//	PATH/CLUSTER/boot-ID/sessions/  a file that the session keeps flock'ed, and its socket
//	PATH/CLUSTER/names/          the Store: entries by directory, inodes by number, a journal
//
// The kernel is the lease. A session's process keeps its session file
// flock'ed, and the kernel lets go of that when the process ends, however it
// ends; so a session can't be dead and hold, nor live and be taken for dead (a process
// that is stopped keeps its locks; SessionOptions.TTL plays no part). Peers ask
// by trying that lock. What was locked when the machine went down is void: it
// lies below the id of another boot.
//
// Who waits has a line, a connected socket, to every session that stood in the
// queue before it. The line's end tells of the peer's death; whoever learns of
// it takes the dead one's entries out and serves the queue. So these are the invariants:
//
//   - A state that is written has been settled: nobody in it waits who could be served.
//   - Whoever writes a grant for another session sends a message. If it is killed in
//     between, the one who waits sees the line to it end, and reads the state itself: only a
//     session that stood before it in the queue can have been in its way, and to those it has lines.
//   - A message is never dropped while its receiver lives: each line has a list of its own,
//     so a slow or stopped receiver holds up nobody else.
//
// Should somebody remove the directory, each session notices within noticeTime, and is over; nobody who
// had a session there makes it anew sooner. (Who comes new in that moment can't know of them.)
//
// The locks end at this machine (Local): directories on network file systems are refused.
package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/config"
)

// Backend is a directory. See backends.Backend.
type Backend struct {
	store
	path, cluster string
	log           *slog.Logger

	closing  chan struct{}  // closed by Close
	renewals sync.WaitGroup // of the goroutine that makes an area anew

	mu      sync.Mutex
	areas   []*area  // the last one is in use; those before it were removed under their sessions
	renewed *renewal // that of the one in use, while it is under way
}

// renewal is how an area that was removed is made anew.
type renewal struct {
	done chan struct{} // closed when a and err are set
	a    *area
	err  error
}

var _ backends.Backend = (*Backend)(nil)

// Open opens, and creates where missing, the directory of a cluster. ctx
// bounds it. The caller closes the Backend, sessions first.
//
// Errors: ErrRefused (not ours, or not writable), ErrNoSpace, ErrForeign (a file
// system that can't lock, or one shared with other machines), ErrUnavailable.
func Open(ctx context.Context, cfg config.File, cluster string, log *slog.Logger) (*Backend, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := &Backend{path: cfg.Path, cluster: cluster, log: log, closing: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- b.open() }() // a dead mount can hang any call
	select {
	case err := <-done:
		if err != nil {
			return nil, fmt.Errorf("open %v: %w", b, err)
		}
		return b, nil
	case <-ctx.Done():
		go func() {
			if <-done == nil {
				_ = b.Close() // nobody has used it
			}
		}()
		return nil, fmt.Errorf("open %v: %w: %w", b, backends.ErrUnavailable, context.Cause(ctx))
	}
}

func (b *Backend) open() error {
	a, err := b.makeArea()
	if err == nil {
		b.areas = append(b.areas, a)
	}
	return err
}

// makeArea opens the directory, and makes of it what is missing.
func (b *Backend) makeArea() (*area, error) {
	if err := prepare(b.path); err != nil {
		return nil, err
	}
	root := filepath.Join(b.path, diskName(b.cluster))
	a, err := openArea(root, b.log)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.openStore(filepath.Join(root, "names")), a.sweep()); err != nil {
		_ = a.close() // the error to report is err
		return nil, err
	}
	return a, nil
}

// noticeTime is how often a session looks, at least, whether its file is still there.
const noticeTime = time.Second

// here returns the area that new sessions use. Where it was removed it is made anew, but
// only when all its sessions have noticed: until then their holders believe that they hold. That goes on when the caller
// gives up: one who waits for less each time gets there too.
func (b *Backend) here(ctx context.Context) (*area, error) {
	a, err := b.inUse()
	if err != nil || a.present() {
		return a, err
	}
	r := b.renewalOf(a)
	select {
	case <-r.done:
		return r.a, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: the directory was removed: %w", backends.ErrUnavailable, context.Cause(ctx))
	}
}

// renewalOf returns the renewal of an area that is missing, begun where none is under way.
func (b *Backend) renewalOf(removed *area) *renewal {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.renewed != nil {
		return b.renewed
	}
	r := &renewal{done: make(chan struct{})}
	select {
	case <-b.closing:
		r.err = errShut
		close(r.done)
		return r
	default:
	}
	b.renewed = r
	b.renewals.Go(func() {
		defer close(r.done)
		select {
		case <-time.After(noticeTime * 3 / 2):
		case <-b.closing:
		}
		r.a, r.err = b.renew(removed)
	})
	return r
}

var errShut = fmt.Errorf("%w: it was closed", backends.ErrUnavailable)

func (b *Backend) inUse() (*area, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.areas) == 0 {
		return nil, errShut
	}
	return b.areas[len(b.areas)-1], nil
}

// renew makes the area anew in place of one that was removed, unless that was done already.
func (b *Backend) renew(removed *area) (made *area, err error) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.renewed = nil
	}()
	if a, err := b.inUse(); err != nil || a != removed {
		return a, err
	}
	select {
	case <-b.closing:
		return nil, errShut
	default:
	}
	a, err := b.makeArea()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.areas = append(b.areas, a)
	b.log.Warn("the directory was removed and is made again; its locks are lost", "directory", b.path)
	return a, nil
}

// String names the directory.
func (b *Backend) String() string { return "file in " + b.path }

// Local reports true: the locks end at this machine.
func (b *Backend) Local() bool { return true }

// Close closes the directory.
func (b *Backend) Close() error {
	b.stop()
	b.renewals.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, a := range b.areas {
		errs = append(errs, a.close())
	}
	b.areas = nil
	return errors.Join(errs...)
}

// stop ends what waits.
func (b *Backend) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.closing:
	default:
		close(b.closing)
	}
}

// diskName is how a component is stored: as it is where that is short and
// plain on every file system, else as a hash, with the name in the file. The
// two kinds begin differently, so no two names are ever merged.
func diskName(component string) string {
	plain := len(component) <= 200 && strings.Trim(component, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
	if plain {
		return "=" + component
	}
	return "#" + hashed(component)
}

func hashed(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// kind wraps an error of the operating system with the kind it is.
func kind(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT): // of ours, which somebody removed: not ErrNotExist, which is said of names
		return fmt.Errorf("%w: %s", backends.ErrUnavailable, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", backends.ErrNoSpace, err)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", backends.ErrRefused, err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: %w", backends.ErrForeign, err)
	}
	return fmt.Errorf("%w: %w", backends.ErrUnavailable, err)
}

// gate is a flock that excludes within the process as well, at little cost:
// at most one goroutine of a Backend waits in the system call.
type gate struct {
	mu   sync.RWMutex
	path string
}

// lock takes the gate and returns what lets go of it. It can't be cancelled,
// for it is held for microseconds; callers that promise to come back
// whatever happens (a holder may be stopped) run it in a goroutine.
func (g *gate) lock(shared bool) (unlock func(), err error) {
	f := flock.New(g.path, flock.SetPermissions(0o600))
	take, free := f.Lock, g.mu.Unlock
	if shared {
		g.mu.RLock()
		take, free = f.RLock, g.mu.RUnlock
	} else {
		g.mu.Lock()
	}
	for {
		if err = take(); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		free()
		return nil, fmt.Errorf("lock %s: %w", g.path, kind(err))
	}
	return func() {
		_ = f.Close() // closing its descriptor unlocks, even where it returns an error
		free()
	}, nil
}
