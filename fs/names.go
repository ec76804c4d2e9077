package fs

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
)

// Lookup implements fuse.RawFileSystem. A name that does not exist is never
// cached: another node may create it any time.
func (f *FileSystem) Lookup(cancel <-chan struct{}, in *fuse.InHeader, component string, out *fuse.EntryOut) fuse.Status {
	name, err := f.nodes.child(in.NodeId, component)
	if err != nil {
		return f.status("look up", component, err)
	}
	told := f.retries.expected(in.Pid, name)
	blindly := func() (opens, done bool) {
		o, ok := openingOf(in.Pid)
		switch opens = ok && o.ofLock(); {
		case !opens:
			return false, false
		case told != nil:
			return true, f.sayAgain(told, out)
		}
		return true, f.lookUpBlindly(o, in, name, out)
	}
	if f.reach.isOut() {
		if _, done := blindly(); done {
			return fuse.OK
		}
	}
	err = f.lookUp(cancel, in, name, told, out)
	if unreachable(err) {
		opens, done := blindly()
		if done {
			return fuse.OK
		}
		if opens {
			err = lockErrno(err)
		}
	}
	return f.status("look up", name, err)
}

// lookUp asks the store.
func (f *FileSystem) lookUp(interrupt <-chan struct{}, in *fuse.InHeader, name string, told *retry, out *fuse.EntryOut) error {
	var info backends.Info
	err := f.ask(interrupt, in.Pid, func(ctx context.Context) (err error) {
		info, err = f.store.Stat(ctx, name)
		return err
	})
	if errors.Is(err, backends.ErrNotDir) {
		// A component was a directory when the kernel looked it up.
		err = syscall.ENOENT
	}
	if told != nil && told.create != nil && errors.Is(err, backends.ErrNotExist) {
		info, err = f.store.Create(f.life, name, *told.create) // see retry.go
		if errors.Is(err, backends.ErrExist) {
			info, err = f.store.Stat(f.life, name)
		}
	}
	if err == nil {
		f.fillEntry(out, name, info, told != nil)
	}
	return err
}

// make creates what info says, with the caller's owner and group.
func (f *FileSystem) make(in *fuse.InHeader, component string, info backends.Info, out *fuse.EntryOut) error {
	name, err := f.nodes.child(in.NodeId, component)
	if err != nil {
		return err
	}
	info, err = f.store.Create(f.life, name, f.owned(in, info))
	if err != nil {
		return err
	}
	f.fillEntry(out, name, info, false)
	return nil
}

// owned fills in owner, group and times. In a directory with the setgid bit a
// new file has the directory's group, and a new directory the bit too. The
// caller's umask has been applied by the kernel.
func (f *FileSystem) owned(in *fuse.InHeader, info backends.Info) backends.Info {
	now := time.Now()
	info.UID, info.GID = in.Uid, in.Gid
	info.Atime, info.Mtime, info.Ctime = now, now, now
	if dir := f.nodes.lastTold(in.NodeId); dir.Mode&syscall.S_ISGID != 0 {
		info.GID = dir.GID
		if info.IsDir() {
			info.Mode |= syscall.S_ISGID
		}
	}
	return info
}

// Mkdir implements fuse.RawFileSystem.
func (f *FileSystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, component string, out *fuse.EntryOut) fuse.Status {
	info := backends.Info{Mode: syscall.S_IFDIR | in.Mode&07777}
	return f.status("mkdir", component, f.make(&in.InHeader, component, info, out))
}

// Mknod implements fuse.RawFileSystem. Only regular files make sense here.
func (f *FileSystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, component string, out *fuse.EntryOut) fuse.Status {
	if kind := in.Mode & syscall.S_IFMT; kind != syscall.S_IFREG && kind != 0 {
		return fuse.EPERM
	}
	info := backends.Info{Mode: syscall.S_IFREG | in.Mode&07777}
	return f.status("mknod", component, f.make(&in.InHeader, component, info, out))
}

// Symlink implements fuse.RawFileSystem.
func (f *FileSystem) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, component string, out *fuse.EntryOut) fuse.Status {
	info := backends.Info{Mode: syscall.S_IFLNK | 0o777, Target: target}
	return f.status("symlink", component, f.make(in, component, info, out))
}

// Readlink implements fuse.RawFileSystem.
func (f *FileSystem) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, name, err := f.nodes.find(in.NodeId)
	if err != nil {
		return nil, f.status("readlink", name, err)
	}
	info, err := f.store.StatInode(f.life, n.ino)
	switch {
	case errors.Is(err, backends.ErrNotExist):
		err = syscall.ESTALE
	case unreachable(err):
		if o, ok := openingOf(in.Pid); ok && o.ofLock() {
			info, err = f.nodes.lastTold(n.id), nil // see reach.go
		}
	}
	return []byte(info.Target), f.status("readlink", name, err)
}

// Link implements fuse.RawFileSystem.
func (f *FileSystem) Link(_ <-chan struct{}, in *fuse.LinkIn, component string, out *fuse.EntryOut) fuse.Status {
	return f.status("link", component, f.link(in, component, out))
}

func (f *FileSystem) link(in *fuse.LinkIn, component string, out *fuse.EntryOut) error {
	to, err := f.nodes.child(in.NodeId, component)
	if err != nil {
		return err
	}
	n, from, err := f.nodes.find(in.Oldnodeid)
	if err != nil {
		return err
	}
	if err := f.current(n, from); err != nil {
		return err
	}
	info, err := f.store.Link(f.life, from, to)
	if err != nil {
		return err
	}
	f.fillEntry(out, to, info, false)
	return nil
}

// current returns ESTALE where the name no longer is what the kernel thinks.
func (f *FileSystem) current(n *node, name string) error {
	info, err := f.store.Stat(f.life, name)
	if stale(n, info, err) {
		return syscall.ESTALE
	}
	return err
}

// stale reports whether what Stat says of a node's name is that another node
// has removed or replaced it.
func stale(n *node, info backends.Info, err error) bool {
	return errors.Is(err, backends.ErrNotExist) || errors.Is(err, backends.ErrNotDir) || err == nil && info.Ino != n.ino
}

// Unlink implements fuse.RawFileSystem. It removes the file, not the lock.
func (f *FileSystem) Unlink(_ <-chan struct{}, in *fuse.InHeader, component string) fuse.Status {
	name, err := f.nodes.child(in.NodeId, component)
	if err == nil {
		err = f.removing(name, func() error { return f.store.Remove(f.life, name, false) })
		f.nodes.looks.removals.Add(1) // after it: who looked before is to look again
	}
	return f.status("unlink", name, err)
}

// Rmdir implements fuse.RawFileSystem.
func (f *FileSystem) Rmdir(_ <-chan struct{}, in *fuse.InHeader, component string) fuse.Status {
	name, err := f.nodes.child(in.NodeId, component)
	if err == nil {
		err = f.store.Remove(f.life, name, true)
	}
	return f.status("rmdir", name, err)
}
