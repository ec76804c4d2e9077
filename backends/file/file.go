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
//	PATH/CLUSTER/names/          the Store: entries by directory, inodes by number
//
// The kernel is the lease. A session's process keeps its session file
// flock'ed, and the kernel lets go of that when the process ends, however it
// ends; so a session can't be dead and hold, nor live and be taken for dead. Peers ask
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
// The locks end at this machine (Local): directories on network file systems are refused.
package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

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

	shards   [shardCount]shard
	tokens   *os.File
	tokensFd uintptr
	locks    string   // directory of the states
	sessions string   // directory of the session files
	sockets  *os.File // the same, opened, to reach sockets by a short path
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
	b := &Backend{path: cfg.Path, cluster: cluster, log: log}
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
	if err := prepare(b.path); err != nil {
		return err
	}
	root := filepath.Join(b.path, diskName(b.cluster))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read this boot's id: %w: %w", backends.ErrUnavailable, err)
	}
	run := filepath.Join(root, "boot-"+strings.TrimSpace(string(boot)))
	b.locks, b.sessions = filepath.Join(run, "locks"), filepath.Join(run, "sessions")
	for _, dir := range []string{b.locks, b.sessions} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return kind(err)
		}
	}
	if err := forgetBoots(root, filepath.Base(run)); err != nil {
		return err
	}
	for i := range b.shards {
		b.shards[i].index, b.shards[i].temp = i, filepath.Join(run, fmt.Sprintf("new-%02d", i))
	}
	if b.tokens, err = openTokens(filepath.Join(root, "tokens")); err != nil {
		return kind(err)
	}
	b.tokensFd = b.tokens.Fd()
	if b.sockets, err = os.Open(b.sessions); err != nil {
		_ = b.tokens.Close() // the error to report is err
		return kind(err)
	}
	if err := errors.Join(b.openStore(filepath.Join(root, "names")), b.sweep()); err != nil {
		_ = b.Close() // the error to report is err
		return err
	}
	return nil
}

// prepare makes the directory, and checks that it is ours alone and can lock.
func prepare(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return kind(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return kind(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%w: it is no directory; name another path", backends.ErrForeign)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%w: the directory belongs to user %d and this is user %d; name another path or change its owner",
			backends.ErrRefused, st.Uid, os.Geteuid())
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%w: everybody may write to the directory (mode %04o); chmod o-w it", backends.ErrRefused, info.Mode().Perm())
	}
	if err := checkFileSystem(path); err != nil {
		return err
	}
	return checkFlock(path)
}

// remote are file systems that several machines share, by statfs(2)'s magic number.
var remote = map[int64]string{
	unix.NFS_SUPER_MAGIC: "NFS", unix.SMB_SUPER_MAGIC: "SMB", unix.SMB2_SUPER_MAGIC: "SMB", unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.CEPH_SUPER_MAGIC: "Ceph", unix.AFS_SUPER_MAGIC: "AFS", unix.CODA_SUPER_MAGIC: "Coda", unix.NCP_SUPER_MAGIC: "NCP",
	unix.OCFS2_SUPER_MAGIC: "OCFS2", 0x01161970: "GFS2", 0x0bd00bd0: "Lustre", 0x47504653: "GPFS",
}

// checkFileSystem refuses what other machines may see: they would not hear our messages.
func checkFileSystem(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return kind(&os.PathError{Op: "statfs", Path: path, Err: err})
	}
	if name, ok := remote[int64(st.Type)&0xffffffff]; ok {
		return fmt.Errorf("%w: the directory is on %s, and these locks end at this machine; "+
			"name a path on a local file system, or use a redis or zookeeper back end", backends.ErrForeign, name)
	}
	return nil
}

// checkFlock tries whether one flock excludes another here.
func checkFlock(path string) error {
	probe, err := os.CreateTemp(path, "probe-")
	if err != nil {
		return kind(err)
	}
	defer func() { _ = os.Remove(probe.Name()) }() // a probe that stays is harmless
	if err := probe.Close(); err != nil {
		return kind(err)
	}
	first, second := flock.New(probe.Name()), flock.New(probe.Name())
	got, err := first.TryLock()
	if err == nil && got {
		defer func() { _ = first.Unlock() }() // closing the descriptor unlocks
		got, err = second.TryLock()
		if err == nil && !got {
			return nil
		}
		_ = second.Unlock() // as above
	}
	if err == nil {
		err = errors.New("two descriptors got the same lock")
	}
	return fmt.Errorf("%w: flock does not work on the directory's file system (%w); name a path on another one",
		backends.ErrForeign, err)
}

// forgetBoots removes what was locked before this machine's boot. If a
// session of another boot lives, its directory is shared with another machine.
func forgetBoots(root, current string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return kind(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "boot-") || e.Name() == current {
			continue
		}
		dir := filepath.Join(root, e.Name(), "sessions")
		old, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return kind(err)
		}
		for _, s := range old {
			if !strings.HasSuffix(s.Name(), socketSuffix) && alive(filepath.Join(dir, s.Name())) {
				return fmt.Errorf("%w: another machine uses the directory %s; name one that is this machine's own", backends.ErrForeign, root)
			}
		}
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return kind(err)
		}
	}
	return nil
}

// String names the directory.
func (b *Backend) String() string { return "file in " + b.path }

// Local reports true: the locks end at this machine.
func (b *Backend) Local() bool { return true }

// Close closes the directory.
func (b *Backend) Close() error {
	return errors.Join(b.tokens.Close(), b.sockets.Close())
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
