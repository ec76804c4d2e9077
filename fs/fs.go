// Package fs is the FUSE face: it turns the kernel's requests into calls of
// the node's lock table (package locks) and of the cluster's store of names
// (package backends), and their errors into errno.
//
// The one idea: the name is the lock. A FUSE nodeid stands for a name
// together with the store's inode that it had when it was looked up, so two
// hard links are two nodeids and two locks; a handle keeps the name it was
// opened under for as long as it lives, whatever becomes of the file.
//
// FileSystem answers requests and knows nothing of mounting. Mount serves a /dev/fuse that
// somebody has mounted (package mountpoint), by package device.
//
// # What may wait
//
// While a request waits, the kernel holds what it holds for that system call,
// so a wait for a lock is allowed only where that is nothing:
//
//   - SETLKW and OPEN: nothing is held.
//   - CREATE: the directory is locked; nobody could look up or create a name in it.
//     CREATE only tries; see create.go.
//   - WRITE and SETATTR: the inode is locked; a waiting writer would keep the very holder
//     that it waits for from writing and unlinking. Only a bare handle waits
//     there, and it has a nodeid (thus a kernel inode) of its own; see retry.go.
//
// # What signals interrupt
//
// A signal ends waits for locks, and an open's wait for a store that does not answer (EINTR), and nothing else. Requests about
// names and contents run to their end, which the back end's time-out bounds: programs
// don't expect EINTR from them, and whether the change was made would be unknown.
package fs

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/config"
	"lockfs/fs/device"
	"lockfs/fs/locks"
)

// FileSystem answers FUSE requests. It is safe for use by many goroutines.
type FileSystem struct {
	fuse.RawFileSystem // ENOSYS for what no method below answers

	store  backends.Store
	table  *locks.Table
	config *config.Config
	log    *slog.Logger

	// life is what requests about names and contents run under; it ends with Close.
	life context.Context
	end  context.CancelFunc

	closing sync.Mutex // held by Close
	closed  bool

	nodes   *nodes
	files   *files
	handles *handles
	retries *retries
	guard   *guard
	reach   *reach
	conn    atomic.Pointer[device.Conn] // nil where it has no mount
}

// New opens the lock table, and with it a session of the back end. ctx bounds
// the opening. The caller closes the file system, then the back end.
func New(ctx context.Context, o Options) (*FileSystem, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &FileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		store:         o.Backend, config: o.Config, log: log,
		nodes: newNodes(), files: newFiles(), handles: newHandles(), retries: newRetries(),
	}
	var err error
	if f.guard, err = newGuard(o.Config, o.Ledger, log); err != nil {
		return nil, err
	}
	f.life, f.end = context.WithCancel(context.WithoutCancel(ctx))
	f.reach = &reach{store: f.store, life: f.life}
	session := backends.SessionOptions{Node: o.Config.Node, TTL: o.Config.SessionTTL, LockDelay: o.Config.LockDelay, Guard: o.Guard, Log: log}
	table, err := locks.New(ctx, locks.Options{
		Open: func(ctx context.Context) (backends.Session, error) {
			return o.Backend.Open(ctx, session)
		},
		Alone:            f.alone,
		CatchUp:          f.catchUp,
		UnavailableAfter: unavailableAfter(o.Config),
		KeepIdle:         o.Config.KeepIdle,
		Turn:             turn,
		Log:              log,
		Watcher:          f.guard,
	})
	if err != nil {
		f.end()
		f.guard.close()
		return nil, fmt.Errorf("open a session at %s: %w", o.Backend, err)
	}
	f.table = table
	return f, nil
}

// Close releases all locks and ends all waits and requests. ctx bounds it. Whoever still
// holds one, the mount being in use, loses it: on_lost is done before. A second Close does nothing.
func (f *FileSystem) Close(ctx context.Context) error {
	f.closing.Lock()
	defer f.closing.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	defer f.guard.close()
	defer f.reach.close()
	defer f.end()
	f.guard.closing(ctx)
	if err := f.table.Close(ctx); err != nil {
		return fmt.Errorf("close the lock table: %w", err)
	}
	return nil
}

// String implements fuse.RawFileSystem.
func (f *FileSystem) String() string { return "lockfs" }

// turn is how long a node that another one waits for still serves newcomers first: so much may the order of
// arrival across nodes be mistaken, and so long can a node's owners follow each other without the
// back end, some dozens of times.
const turn = 5 * time.Millisecond

// unavailableAfter is the longest time-out of the back ends configured: so
// long a request that is not to wait tries while there is no session.
func unavailableAfter(c *config.Config) time.Duration {
	after := time.Second
	for _, b := range c.Backends {
		if b.Redis != nil {
			after = max(after, b.Redis.Timeout)
		}
		if b.ZooKeeper != nil {
			after = max(after, b.ZooKeeper.Timeout)
		}
	}
	return after
}
