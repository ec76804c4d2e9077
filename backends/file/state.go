package file

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
func (a *area) shardOf(name string) *shard { return a.shardOfFile(hashed(name)) }

// shardOfFile is shardOf by the name of the state's file.
func (a *area) shardOfFile(file string) *shard {
	n, err := strconv.ParseUint(file[:2], 16, 8)
	if err != nil {
		n = 0 // no state of ours
	}
	return &a.shards[n%shardCount]
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

// slotSize is the room for a state in its file. A file has two slots in one
// block, and a state is written to the one that the state before it is not
// in: a process that is killed meanwhile leaves that one, and no space is needed on a full
// disk, where locks must be let go too. A state that is larger has a file to
// itself, which replaces the old one by a rename.
const slotSize = 2048

// stored says where a state was read from.
type stored struct {
	version uint64
	slot    int64 // the one to write to next
	large   bool
}

// readState returns the state of a name whose shard is locked.
func (a *area) readState(name string) (queue.State, stored, error) {
	path := a.statePath(name)
	data, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, stored{}, nil
	}
	if err != nil {
		return nil, stored{}, fmt.Errorf("read the state of %q: %w", name, kind(err))
	}
	found, st, at, err := latest(data)
	if err == nil && found != name && len(data) > 0 {
		err = fmt.Errorf("of the name %q", found)
	}
	if err != nil {
		return nil, stored{}, fmt.Errorf("%s is not the state of %q (%w); when no mount uses the directory, remove the file: %w",
			path, name, err, backends.ErrForeign)
	}
	return st, at, nil
}

// latest finds the last state in a file. An empty file is one whose maker was killed.
func latest(data []byte) (name string, st queue.State, at stored, err error) {
	if len(data) == 0 {
		return "", nil, stored{}, nil
	}
	version, name, st, err := decodeState(data)
	at = stored{version: version, slot: 1, large: err == nil && len(data) > 2*slotSize}
	if len(data) > slotSize && !at.large {
		v, n, s, err2 := decodeState(data[slotSize:])
		if err2 == nil && (err != nil || v > version) {
			return n, s, stored{version: v, slot: 0}, nil
		}
	}
	return name, st, at, err
}

// writeState replaces the state of a name, whose shard is locked, in one
// step: a process that is killed meanwhile leaves the old state or the new one.
func (a *area) writeState(sh *shard, name string, was stored, st queue.State) error {
	path := a.statePath(name)
	if len(st) == 0 {
		if err := os.Remove(path); err != nil { // that it is not there means that somebody removed it
			return fmt.Errorf("remove the state of %q: %w", name, kind(err))
		}
		return nil
	}
	data := encodeState(was.version+1, name, st)
	var err error
	if len(data) <= slotSize && !was.large {
		if err = writeSlot(path, data, was.slot); err != nil && was == (stored{}) {
			_ = os.Remove(path) // there was none: what was made of it, on a full disk, says nothing
		}
	} else {
		if len(data) <= 2*slotSize { // so that it is not taken for one with slots
			data = append(data, make([]byte, 2*slotSize+1-len(data))...)
		}
		if err = writeSmall(sh.temp, data); err == nil {
			err = os.Rename(sh.temp, path)
		}
		if err != nil {
			_ = os.Remove(sh.temp) // it may be what fills the disk
		}
	}
	if err != nil {
		return fmt.Errorf("write the state of %q: %w", name, kind(err))
	}
	return nil
}

// sweepStates takes out of all states what sessions that died left there. Nobody waits for
// those, or else they would have been taken out by who waits.
func (a *area) sweepStates() error {
	files, err := os.ReadDir(a.locks)
	if err != nil {
		return kind(err)
	}
	for _, file := range files {
		if err := a.sweepState(file.Name()); err != nil {
			return err
		}
	}
	return nil
}

// sweepState writes no grants, for it could tell nobody: a state in which somebody waits is left to them.
// One that can't be read is left to who uses the name.
func (a *area) sweepState(file string) error {
	sh := a.shardOfFile(file)
	unlock, err := a.lockShard(sh)
	if err != nil {
		return err
	}
	defer unlock()
	data, err := readSmall(filepath.Join(a.locks, file))
	if errors.Is(err, os.ErrNotExist) {
		return nil // let go of meanwhile
	}
	name, st, was, err2 := latest(data)
	switch {
	case err != nil:
		return kind(err)
	case len(data) == 0:
		return kind(os.Remove(filepath.Join(a.locks, file)))
	case err2 != nil || hashed(name) != file:
		return nil
	}
	waits := func(e queue.Entry) bool { return !e.Granted && alive(a.sessionPath(e.Session)) }
	dead := func(e queue.Entry) bool {
		return !alive(a.sessionPath(e.Session)) && (!e.Granted || a.delayLeft(e.Session) == 0)
	}
	if slices.ContainsFunc(st, waits) || !slices.ContainsFunc(st, dead) {
		return nil
	}
	return a.writeState(sh, name, was, slices.DeleteFunc(st, dead))
}
