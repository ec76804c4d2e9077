package file

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"lockfs/backends"
)

// area is what the sessions of a cluster share: the directory of this boot, opened.
type area struct {
	root     string
	log      *slog.Logger
	shards   [shardCount]shard
	tokens   *os.File
	locker   syscall.RawConn // of tokens
	locks    string          // directory of the states
	sessions string          // directory of the session files
	sockets  *os.File        // the same, opened, to reach sockets by a short path
	prefix   string          // of the paths of sockets
}

// openArea opens, and creates where missing, what is below root for this boot.
func openArea(root string, log *slog.Logger) (*area, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read this boot's id: %w: %w", backends.ErrUnavailable, err)
	}
	run := filepath.Join(root, "boot-"+strings.TrimSpace(string(boot)))
	a := &area{root: root, log: log, locks: filepath.Join(run, "locks"), sessions: filepath.Join(run, "sessions")}
	for _, dir := range []string{a.locks, a.sessions} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, kind(err)
		}
	}
	if err := forgetBoots(root, filepath.Base(run)); err != nil {
		return nil, err
	}
	for i := range a.shards {
		a.shards[i].index, a.shards[i].temp = i, filepath.Join(run, fmt.Sprintf("new-%02d", i))
	}
	if a.tokens, err = os.OpenFile(filepath.Join(root, "tokens"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, kind(err)
	}
	if a.locker, err = a.tokens.SyscallConn(); err == nil {
		a.sockets, err = os.Open(a.sessions)
	}
	if err != nil {
		_ = a.tokens.Close() // the error to report is err
		return nil, kind(err)
	}
	a.prefix = fmt.Sprintf("/proc/self/fd/%d/", a.sockets.Fd())
	return a, nil
}

func (a *area) close() error { return errors.Join(a.tokens.Close(), a.sockets.Close()) }

// present reports whether the area is still where others look for it.
func (a *area) present() bool {
	mine, err1 := a.sockets.Stat()
	there, err2 := os.Stat(a.sessions)
	return err1 == nil && (err2 == nil && os.SameFile(mine, there) || err2 != nil && !errors.Is(err2, os.ErrNotExist))
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
