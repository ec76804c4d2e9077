package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/fs/locks"
)

// Rename implements fuse.RawFileSystem.
func (f *FileSystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldComponent, newComponent string) fuse.Status {
	if in.Flags&^unix.RENAME_NOREPLACE != 0 {
		return fuse.EINVAL
	}
	from, err := f.nodes.child(in.NodeId, oldComponent)
	if err != nil {
		return f.status("rename", oldComponent, err)
	}
	to, err := f.nodes.child(in.Newdir, newComponent)
	if err == nil {
		err = f.rename(from, to, in.Flags&unix.RENAME_NOREPLACE != 0)
	}
	return f.status("rename", from, err)
}

// rename moves a name. A held name can't be moved away (EBUSY), for the lock
// stays with the name and its holder would not know. Over a held name is
// fine: the contents are replaced, the lock stays.
func (f *FileSystem) rename(from, to string, noReplace bool) error {
	info, err := f.store.Stat(f.life, from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		unlock, err := f.lockForRename(from)
		if err != nil {
			return err
		}
		defer unlock()
	}
	err = f.removing(to, func() error { return f.store.Rename(f.life, from, to, noReplace) })
	if err != nil {
		return err
	}
	// Two names of one inode: rename(2) does nothing.
	if _, err := f.store.Stat(f.life, from); errors.Is(err, backends.ErrNotExist) || info.Nlink == 1 {
		f.nodes.rename(from, to, info.Ino)
	}
	return nil
}

// lockForRename takes the write lock of a name for as long as it is moved, under an owner of
// its own, and by the door through which nobody yields to it.
func (f *FileSystem) lockForRename(name string) (unlock func(), err error) {
	id := f.handles.next()
	err = f.table.Lock(context.WithoutCancel(f.life), locks.Request{Name: name, Handle: id,
		Owner: locks.Owner{Kind: locks.Description, ID: id}, Door: locks.Open, Lock: wholeWrite})
	switch {
	case errors.Is(err, backends.ErrWouldBlock):
		return nil, syscall.EBUSY
	case err != nil:
		return nil, fmt.Errorf("lock %q to rename it: %w", name, err)
	}
	return func() { f.table.ReleaseHandle(name, id) }, nil
}
