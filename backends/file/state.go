package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/backends/queue"
)

// shardCount is the number of locks that the states of all names share.
const shardCount = 64

// shard guards the states of the names that hash to it: by a mutex within the
// process, and between processes by an OFD lock on its bytes in the tokens file.
// (That is one system call on a descriptor that is open already; flock would take a file for each.)
type shard struct {
	mu    sync.Mutex
	index int
	temp  string // the one temporary file: a kill leaves at most this behind
}

// lockShard locks a shard and returns what lets go of it. It can't be
// cancelled, for a shard is held for microseconds; who promises to come back
// whatever happens (a holder may be stopped) calls it in a goroutine, by run.
func (a *area) lockShard(sh *shard) (unlock func(), err error) {
	sh.mu.Lock()
	if err := a.setShardLock(sh, unix.F_OFD_SETLKW, unix.F_WRLCK); err != nil {
		sh.mu.Unlock()
		return nil, fmt.Errorf("lock %s: %w", a.tokens.Name(), kind(err))
	}
	return func() {
		if err := a.setShardLock(sh, unix.F_OFD_SETLK, unix.F_UNLCK); err != nil {
			a.log.Error("can't unlock; unmount, as others may wait for this process", "file", a.tokens.Name(), "error", err)
		}
		sh.mu.Unlock()
	}, nil
}

func (a *area) setShardLock(sh *shard, command int, kind int16) error {
	l := unix.Flock_t{Type: kind, Start: int64(8 * sh.index), Len: 8}
	var err error
	return errors.Join(a.locker.Control(func(fd uintptr) {
		err = retry(func() error { return unix.FcntlFlock(fd, command, &l) })
	}), err)
}

// shardOf returns the shard of a name. It never changes, so that a name's tokens grow.
func (a *area) shardOf(name string) *shard {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return &a.shards[h.Sum32()%shardCount]
}

// lastToken returns the last token of a shard, which is locked.
func (a *area) lastToken(sh *shard) (uint64, error) {
	var buf [8]byte
	n, err := a.tokens.ReadAt(buf[:], int64(8*sh.index))
	if n < len(buf) {
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read the last token: %w", kind(err))
		}
		return 0, nil
	}
	return binary.LittleEndian.Uint64(buf[:]), nil
}

// nextToken returns a token greater than all before, of a shard that is
// locked. It is written before anybody sees it; the clock keeps it growing even
// if the file is lost.
func (a *area) nextToken(sh *shard) (uint64, error) {
	last, err := a.lastToken(sh)
	if err != nil {
		return 0, err
	}
	next := max(last+1, uint64(time.Now().UnixMicro()))
	var buf [8]byte
	binary.LittleEndian.PutUint64(buf[:], next)
	if _, err := a.tokens.WriteAt(buf[:], int64(8*sh.index)); err != nil {
		return 0, fmt.Errorf("write the next token: %w", kind(err))
	}
	return next, nil
}

func (a *area) statePath(name string) string { return filepath.Join(a.locks, hashed(name)) }

// readState returns the state of a name whose shard is locked.
func (a *area) readState(name string) (queue.State, error) {
	path := a.statePath(name)
	data, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of %q: %w", name, kind(err))
	}
	stored, st, err := decodeState(data)
	if err == nil && stored != name {
		err = fmt.Errorf("of the name %q", stored)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is not the state of %q (%w); when no mount uses the directory, remove the file: %w",
			path, name, err, backends.ErrForeign)
	}
	return st, nil
}

// writeState replaces the state of a name, whose shard is locked, in one
// step: a process that is killed meanwhile leaves the old state or the new one.
func (a *area) writeState(sh *shard, name string, st queue.State) error {
	path := a.statePath(name)
	if len(st) == 0 {
		if err := os.Remove(path); err != nil { // that it is not there means that somebody removed it
			return fmt.Errorf("remove the state of %q: %w", name, kind(err))
		}
		return nil
	}
	data := encodeState(name, st)
	err := writeSmall(sh.temp, data)
	if err == nil {
		err = os.Rename(sh.temp, path)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		_ = os.Remove(sh.temp) // best effort: it is overwritten next time
		if overwrite(path, data) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("write the state of %q: %w", name, kind(err))
	}
	return nil
}

// block is what every file system writes in one step as far as a kill is concerned: one page.
const block = 4096

// overwrite puts a state in the place of the old one without needing space:
// a lock must be let go on a full disk too. The old state's page is there already;
// one write that covers all of it is not torn by a kill.
func overwrite(path string, data []byte) bool {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // nothing is buffered
	info, err := f.Stat()
	if err != nil || max(info.Size(), int64(len(data))) > block {
		return false
	}
	if pad := int(info.Size()) - len(data); pad > 0 {
		data = append(data, bytes.Repeat([]byte{' '}, pad)...)
	}
	_, err = f.WriteAt(data, 0)
	return err == nil
}

// sweepStates takes out of all states what sessions that died left there. Nobody waits for
// those, or else they would have been taken out by who waits.
func (a *area) sweepStates() error {
	files, err := os.ReadDir(a.locks)
	if err != nil {
		return kind(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(a.locks, file.Name()))
		if err != nil {
			continue // let go of meanwhile
		}
		name, _, err := decodeState(data)
		if err != nil || hashed(name) != file.Name() {
			continue // perhaps half overwritten just now; who uses the name looks with its shard locked
		}
		if err := a.sweepState(name); err != nil {
			return err
		}
	}
	return nil
}

// sweepState writes no grants, for it could tell nobody: a state in which somebody waits is left to them.
func (a *area) sweepState(name string) error {
	sh := a.shardOf(name)
	unlock, err := a.lockShard(sh)
	if err != nil {
		return err
	}
	defer unlock()
	st, err := a.readState(name)
	if err != nil {
		return err
	}
	waits := func(e queue.Entry) bool { return !e.Granted && alive(a.sessionPath(e.Session)) }
	dead := func(e queue.Entry) bool { return !alive(a.sessionPath(e.Session)) }
	if slices.ContainsFunc(st, waits) || !slices.ContainsFunc(st, dead) {
		return nil
	}
	return a.writeState(sh, name, slices.DeleteFunc(st, dead))
}
