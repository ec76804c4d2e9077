package file

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lockfs/backends"
	"lockfs/backends/record"
)

// step is one step of a change to the names. Steps can be repeated: doing one
// that is done changes nothing.
//
// Invariant: a change of more than one step is written to the journal first,
// in one step. A process that is killed in the middle leaves the journal, and whoever
// takes the lock next does its steps, all of them, before anything else.
type step struct {
	Do   string // one of the constants below
	Path string // below the store's directory; base 16 and plain names only
	Data []byte `json:",omitempty"`
}

const (
	doPut   = "put"   // a file with Data
	doLink  = "link"  // a symbolic link to Data, replacing what is there
	doDel   = "del"   // nothing at Path: no file, no link, no empty directory
	doMkdir = "mkdir" // a directory
)

func (st *store) journalPath() string { return filepath.Join(st.dir, "journal") }

// unfinished reports whether there is a journal.
func (st *store) unfinished() bool {
	_, err := os.Lstat(st.journalPath())
	return err == nil
}

// commit carries out steps as one. On an error before the first one nothing
// has changed; on a later one (a full disk) the next operation goes on with them.
func (st *store) commit(steps ...step) error {
	data, err := json.Marshal(steps)
	if err != nil {
		return fmt.Errorf("encode the journal: %w", err)
	}
	if err := st.put(st.journalPath(), data); err != nil {
		return err
	}
	return st.perform(steps)
}

// replay finishes what the journal says.
func (st *store) replay() error {
	data, err := os.ReadFile(st.journalPath())
	if err != nil {
		return kind(err)
	}
	var steps []step
	if err := json.Unmarshal(data, &steps); err != nil {
		return fmt.Errorf("%s is not what lockfs wrote (%w); when no mount uses the directory, remove the file: %w",
			st.journalPath(), err, backends.ErrForeign)
	}
	return st.perform(steps)
}

func (st *store) perform(steps []step) error {
	for _, s := range steps {
		if err := st.step(s); err != nil {
			return err
		}
	}
	return kind(os.Remove(st.journalPath()))
}

func (st *store) step(s step) error {
	path := filepath.Join(st.dir, s.Path)
	var err error
	switch s.Do {
	case doPut:
		return st.put(path, s.Data)
	case doLink:
		temp := filepath.Join(st.dir, "newlink") // not put's, which would write through it
		_ = os.Remove(temp)                      // of one who was killed here; if it stays, Symlink says so
		if err = os.Symlink(string(s.Data), temp); err == nil {
			err = os.Rename(temp, path)
		}
	case doDel:
		err = ignore(os.Remove(path), os.ErrNotExist)
	case doMkdir:
		err = ignore(os.Mkdir(path, 0o700), os.ErrExist)
	default:
		return fmt.Errorf("journal step %q: %w", s.Do, backends.ErrForeign)
	}
	return kind(err)
}

func ignore(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}

func (st *store) below(path string) string { return strings.TrimPrefix(path, st.dir+"/") }

// putInode, dropInode, link and unlink are the steps that changes are made of.
func (st *store) putInode(in record.Inode) step {
	return step{Do: doPut, Path: st.below(st.inodePath(in.Ino)), Data: record.Marshal(in)}
}

func (st *store) link(p place, ino uint64) step {
	return step{Do: doLink, Path: st.below(st.entryPath(p.dir, p.component)), Data: []byte(entryTarget(ino, p.component))}
}

func (st *store) unlink(p place) step {
	return step{Do: doDel, Path: st.below(st.entryPath(p.dir, p.component))}
}

// lessOne takes one name from an inode, and the inode with its last.
func (st *store) lessOne(in record.Inode) []step {
	switch {
	case in.IsDir():
		return []step{{Do: doDel, Path: st.below(st.entriesDir(in.Ino))}, {Do: doDel, Path: st.below(st.inodePath(in.Ino))}}
	case in.Nlink <= 1:
		return []step{{Do: doDel, Path: st.below(st.inodePath(in.Ino))}}
	}
	in.Nlink--
	return []step{st.putInode(in)}
}

// vacant finds a place for a new name.
func (st *store) vacant(name string) (place, error) {
	p, err := st.find(name)
	if err == nil && p.ino != 0 {
		err = backends.ErrExist
	}
	return p, err
}

// Create makes a file, directory or symbolic link.
func (st *store) Create(ctx context.Context, name string, info backends.Info) (backends.Info, error) {
	in := record.Inode{Info: info}
	in.Ino, in.Nlink, in.Size = record.NewIno(), 1, int64(len(info.Target))
	err := st.do(ctx, "create", name, false, func() error {
		p, err := st.vacant(name)
		if err != nil {
			return err
		}
		steps := []step{st.putInode(in), st.link(p, in.Ino)}
		if in.IsDir() {
			in.Nlink = 2
			steps = []step{st.putInode(in), {Do: doMkdir, Path: st.below(st.entriesDir(in.Ino))}, st.link(p, in.Ino)}
		}
		return st.commit(steps...)
	})
	if err != nil {
		return backends.Info{}, err
	}
	return in.Info, nil
}

// Link makes another name of a file.
func (st *store) Link(ctx context.Context, oldName, newName string) (backends.Info, error) {
	var in record.Inode
	err := st.do(ctx, "link "+fmt.Sprintf("%q to", oldName), newName, false, func() (err error) {
		if _, in, err = st.get(oldName); err != nil {
			return err
		}
		if in.IsDir() {
			return backends.ErrIsDir
		}
		p, err := st.vacant(newName)
		if err != nil {
			return err
		}
		in.Nlink++
		return st.commit(st.putInode(in), st.link(p, in.Ino))
	})
	if err != nil {
		return backends.Info{}, err
	}
	return in.Info, nil
}

// Remove removes a name.
func (st *store) Remove(ctx context.Context, name string, dir bool) error {
	return st.do(ctx, "remove", name, false, func() error {
		p, in, err := st.get(name)
		switch {
		case err != nil:
			return err
		case p.ino == backends.RootIno:
			return fmt.Errorf("the root: %w", backends.ErrNotEmpty)
		case dir && !in.IsDir():
			return backends.ErrNotDir
		case !dir && in.IsDir():
			return backends.ErrIsDir
		}
		if err := st.mustBeEmpty(in, backends.ErrNotEmpty); err != nil {
			return err
		}
		return st.commit(append([]step{st.unlink(p)}, st.lessOne(in)...)...)
	})
}

// mustBeEmpty returns otherwise for a directory that is not empty.
func (st *store) mustBeEmpty(in record.Inode, otherwise error) error {
	if !in.IsDir() {
		return nil
	}
	full, err := st.notEmpty(in.Ino)
	if err == nil && full {
		err = otherwise
	}
	return err
}

// Rename moves a name.
func (st *store) Rename(ctx context.Context, oldName, newName string, noReplace bool) error {
	return st.do(ctx, "rename "+fmt.Sprintf("%q to", oldName), newName, false, func() error {
		from, in, err := st.get(oldName)
		if err != nil {
			return err
		}
		to, err := st.find(newName)
		switch {
		case err != nil:
			return err
		case to.ino != 0 && noReplace:
			return backends.ErrExist
		case to.ino == from.ino:
			return nil
		case from.ino == backends.RootIno || to.dir == from.ino: // EINVAL of rename(2), which the kernel finds itself
			return backends.ErrCrossDevice
		}
		if err := st.mustBeEmpty(in, backends.ErrCrossDevice); err != nil {
			return err
		}
		steps := []step{st.link(to, in.Ino), st.unlink(from)}
		if to.ino == 0 {
			return st.commit(steps...)
		}
		over, err := st.load(to.ino)
		switch {
		case err != nil:
			return err
		case in.IsDir() && !over.IsDir():
			return backends.ErrNotDir
		case !in.IsDir() && over.IsDir():
			return backends.ErrIsDir
		}
		if err := st.mustBeEmpty(over, backends.ErrNotEmpty); err != nil {
			return err
		}
		return st.commit(append(steps, st.lessOne(over)...)...)
	})
}
