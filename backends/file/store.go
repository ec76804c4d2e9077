package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lockfs/backends"
	"lockfs/backends/record"
)

// store keeps names and contents.
//
//	names/lock        flock'ed by each operation: shared to read, exclusively to change
//	names/inodes/INO  an inode's record (package record)
//	names/dirs/INO/   the entries of a directory: symbolic links to "INO NAME", NAME in base 16
//	names/journal     the steps of a change that was not finished; see journal.go
type store struct {
	gate
	dir string
}

func (st *store) openStore(dir string) error {
	if st.dir == "" { // else it is made anew, under requests that run
		st.dir, st.path = dir, filepath.Join(dir, "lock")
	}
	for _, d := range []string{filepath.Join(dir, "inodes"), st.entriesDir(backends.RootIno)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return kind(err)
		}
	}
	return nil
}

func hexOf(ino uint64) string { return strconv.FormatUint(ino, 16) }

func (st *store) inodePath(ino uint64) string  { return filepath.Join(st.dir, "inodes", hexOf(ino)) }
func (st *store) entriesDir(ino uint64) string { return filepath.Join(st.dir, "dirs", hexOf(ino)) }

func (st *store) entryPath(dir uint64, component string) string {
	return filepath.Join(st.entriesDir(dir), diskName(component))
}

// entryTarget is what an entry's symbolic link says.
func entryTarget(ino uint64, component string) string {
	return fmt.Sprintf("%x %x", ino, component)
}

func parseEntry(target string) (ino uint64, component string, err error) {
	var raw []byte
	number, name, _ := strings.Cut(target, " ")
	if ino, err = strconv.ParseUint(number, 16, 64); err == nil && name != "" {
		_, err = fmt.Sscanf(name, "%x", &raw)
	}
	if err != nil {
		return 0, "", fmt.Errorf("directory entry %q: %w", target, backends.ErrForeign)
	}
	return ino, string(raw), nil
}

// do runs an operation on the store with its lock held, and returns when it
// is done or ctx ends; then the operation goes on by itself.
func (st *store) do(ctx context.Context, what, name string, shared bool, op func() error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %q: %w", what, name, context.Cause(ctx))
	}
	done := make(chan error, 1)
	go func() { done <- st.locked(shared, op) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = fmt.Errorf("not done after %v (the disk hangs, or a process was stopped while it held %s): %w",
			patience, st.path, backends.ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", what, name, err)
	}
	return nil
}

// locked runs op with the lock held, after what a killed process left unfinished is finished.
func (st *store) locked(shared bool, op func() error) error {
	for {
		unlock, err := st.lock(shared)
		if err != nil {
			return err
		}
		unfinished := st.unfinished()
		switch {
		case unfinished && shared: // only with the lock held exclusively; then look again
			unlock()
			if err := st.locked(false, func() error { return nil }); err != nil {
				return err
			}
			continue
		case unfinished:
			err = st.replay()
		}
		if err == nil {
			err = op()
		}
		unlock()
		return err
	}
}

// place is where a name is or would be.
type place struct {
	dir       uint64
	component string
	ino       uint64 // 0: there is no such name
}

// find walks to a name. The name's own absence is no error, a parent's is.
func (st *store) find(name string) (place, error) {
	p := place{ino: backends.RootIno}
	if name == "" {
		return p, nil
	}
	for component := range strings.SplitSeq(name, "/") {
		if p.ino == 0 {
			return p, backends.ErrNotExist
		}
		p = place{dir: p.ino, component: component}
		target, err := os.Readlink(st.entryPath(p.dir, component))
		switch {
		case err == nil:
			var stored string
			if p.ino, stored, err = parseEntry(target); err != nil || stored != component {
				return p, fmt.Errorf("directory entry %q is not that of %q: %w", target, component, backends.ErrForeign)
			}
		case !errors.Is(err, os.ErrNotExist):
			return p, kind(err)
		default:
			if _, err := os.Lstat(st.entriesDir(p.dir)); errors.Is(err, os.ErrNotExist) {
				return p, st.noDirectory(p.dir)
			}
		}
	}
	return p, nil
}

// noDirectory says why an inode has no entries: it is no directory, or the whole store is gone.
func (st *store) noDirectory(ino uint64) error {
	if _, err := os.Lstat(st.dir); err != nil {
		return fmt.Errorf("%w: the directory was removed: %w", backends.ErrUnavailable, errors.New(err.Error()))
	}
	if ino == backends.RootIno {
		return fmt.Errorf("%w: %s was removed", backends.ErrForeign, st.entriesDir(ino))
	}
	return backends.ErrNotDir
}

// load reads an inode.
func (st *store) load(ino uint64) (record.Inode, error) {
	data, err := readSmall(st.inodePath(ino))
	if errors.Is(err, os.ErrNotExist) {
		if ino == backends.RootIno {
			return record.Root(), nil
		}
		return record.Inode{}, backends.ErrNotExist
	}
	if err != nil {
		return record.Inode{}, kind(err)
	}
	in, err := record.Unmarshal(data)
	if err != nil {
		return record.Inode{}, fmt.Errorf("%s: %w", st.inodePath(ino), err)
	}
	return in, nil
}

// get finds a name that has to exist, and reads its inode.
func (st *store) get(name string) (place, record.Inode, error) {
	p, err := st.find(name)
	if err == nil && p.ino == 0 {
		err = backends.ErrNotExist
	}
	if err != nil {
		return p, record.Inode{}, err
	}
	in, err := st.load(p.ino)
	return p, in, err
}

// Stat returns what a name is. See backends.Store for all of these.
func (st *store) Stat(ctx context.Context, name string) (info backends.Info, err error) {
	var in record.Inode
	err = st.do(ctx, "stat", name, true, func() (err error) {
		_, in, err = st.get(name)
		return err
	})
	if err != nil {
		return backends.Info{}, err
	}
	return in.Info, nil
}

// StatInode returns what an inode is.
func (st *store) StatInode(ctx context.Context, ino uint64) (backends.Info, error) {
	var in record.Inode
	err := st.do(ctx, "stat inode", hexOf(ino), true, func() (err error) {
		in, err = st.load(ino)
		return err
	})
	if err != nil {
		return backends.Info{}, err
	}
	return in.Info, nil
}

// List returns the entries of a directory.
func (st *store) List(ctx context.Context, dir string) ([]backends.Entry, error) {
	var entries []backends.Entry
	err := st.do(ctx, "list", dir, true, func() error {
		p, in, err := st.get(dir)
		if err != nil {
			return err
		}
		if !in.IsDir() {
			return backends.ErrNotDir
		}
		entries, err = st.entries(p.ino)
		return err
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

func (st *store) entries(dir uint64) ([]backends.Entry, error) {
	path := st.entriesDir(dir)
	files, err := os.ReadDir(path)
	if err != nil {
		return nil, kind(err)
	}
	entries := make([]backends.Entry, 0, len(files))
	for _, f := range files {
		target, err := os.Readlink(filepath.Join(path, f.Name()))
		if err != nil {
			return nil, kind(err)
		}
		ino, name, err := parseEntry(target)
		if err != nil {
			return nil, err
		}
		in, err := st.load(ino)
		if err != nil {
			return nil, fmt.Errorf("entry %q: %w", name, err)
		}
		entries = append(entries, backends.Entry{Name: name, Info: in.Info})
	}
	return entries, nil
}

// Read returns a part of a file's contents.
func (st *store) Read(ctx context.Context, ino uint64, off int64, n int) ([]byte, error) {
	var data []byte
	err := st.do(ctx, "read inode", hexOf(ino), true, func() error {
		in, err := st.load(ino)
		if err == nil {
			data = in.Read(off, n)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Write puts data into a file.
func (st *store) Write(ctx context.Context, ino uint64, off int64, data []byte, mtime time.Time) (backends.Info, error) {
	return st.modify(ctx, "write inode", ino, func(in *record.Inode) error { return in.Write(off, data, mtime) })
}

// Update changes a file's attributes.
func (st *store) Update(ctx context.Context, ino uint64, attr backends.Attr) (backends.Info, error) {
	return st.modify(ctx, "change the attributes of inode", ino, func(in *record.Inode) error { return in.Update(attr) })
}

// modify replaces an inode's record, which is one step and needs no journal.
func (st *store) modify(ctx context.Context, what string, ino uint64, change func(*record.Inode) error) (backends.Info, error) {
	var in record.Inode
	err := st.do(ctx, what, hexOf(ino), false, func() (err error) {
		if in, err = st.load(ino); err != nil {
			return err
		}
		if err = change(&in); err != nil {
			return err
		}
		return st.put(st.inodePath(ino), record.Marshal(in))
	})
	if err != nil {
		return backends.Info{}, err
	}
	return in.Info, nil
}

// put replaces a file in one step.
func (st *store) put(path string, data []byte) error {
	temp := filepath.Join(st.dir, "new") // the lock is held exclusively
	err := writeSmall(temp, data)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // it may be what fills the disk
		return kind(err)
	}
	return nil
}

// notEmpty reports whether a directory has entries.
func (st *store) notEmpty(ino uint64) (bool, error) {
	f, err := os.Open(st.entriesDir(ino))
	if err != nil {
		return false, kind(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	names, err := f.Readdirnames(1)
	if len(names) == 0 && err != nil && !errors.Is(err, io.EOF) {
		return false, kind(err)
	}
	return len(names) > 0, nil
}
