package fs

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
)

// How long the kernel may believe what it was told. Regular files' attributes
// not at all: programs that lock by link(2) compare link counts right after,
// and the two names are two inodes to the kernel.
const (
	entryFor   = time.Second
	dirAttrFor = time.Second
)

func attrFor(info backends.Info) time.Duration {
	if info.IsDir() {
		return dirAttrFor
	}
	return 0
}

func fillAttr(out *fuse.Attr, info backends.Info) {
	*out = fuse.Attr{Ino: info.Ino, Size: uint64(info.Size), Blocks: uint64(info.Size+511) / 512,
		Mode: info.Mode, Nlink: info.Nlink, Owner: fuse.Owner{Uid: info.UID, Gid: info.GID}, Blksize: 4096}
	out.SetTimes(&info.Atime, &info.Mtime, &info.Ctime)
}

// fillEntry counts a lookup and answers it.
func (f *FileSystem) fillEntry(out *fuse.EntryOut, name string, info backends.Info, private bool) *node {
	return f.fillShared(out, name, info.Ino, newAttrs(info), private)
}

// fillShared is fillEntry for what somebody else remembers too; nobody changes it.
func (f *FileSystem) fillShared(out *fuse.EntryOut, name string, ino uint64, last *attrs, private bool) *node {
	n, info := f.nodes.enter(name, ino, last, private), last.info(ino)
	out.NodeId, out.Generation = n.id, 1
	fillAttr(&out.Attr, info)
	out.SetAttrTimeout(attrFor(info))
	if !private {
		out.SetEntryTimeout(entryFor)
	}
	return n
}

// GetAttr implements fuse.RawFileSystem.
func (f *FileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, name, err := f.nodes.find(in.NodeId)
	if err != nil {
		return f.status("stat", name, err)
	}
	if (n.blind != nil || f.reach.isOut()) && f.answerBlindly(n, in, out) {
		return fuse.OK
	}
	err = f.ask(cancel, in.Pid, func(ctx context.Context) error { return f.getAttr(ctx, n, name, in, out) })
	if unreachable(err) && f.answerBlindly(n, in, out) {
		return fuse.OK
	}
	return f.status("stat", name, err)
}

// getAttr never says ESTALE: the kernel asks for attributes in the course of an open too, which it
// repeats once only. An inode that is gone has no links.
func (f *FileSystem) getAttr(ctx context.Context, n *node, name string, in *fuse.GetAttrIn, out *fuse.AttrOut) error {
	if in.Flags()&fuse.FUSE_GETATTR_FH == 0 {
		if done, err := f.lookAhead(ctx, n, name, in.Pid, out); done {
			return err
		}
	}
	info, err := f.onInode(n.ino, func() (backends.Info, error) {
		return f.store.StatInode(ctx, n.ino)
	}, func(c *file) (backends.Info, error) {
		return c.stat(ctx, f.store)
	})
	if err == syscall.ESTALE {
		info, err = f.nodes.lastTold(n.id), nil
		info.Nlink = 0
	}
	if err != nil {
		return err
	}
	f.answer(n, &info, out)
	return nil
}

// lookAhead answers by what the name is now, and leaves it for the OPEN that may follow (looks.go). It is not done
// where the name no longer leads to the node's inode.
func (f *FileSystem) lookAhead(ctx context.Context, n *node, name string, thread uint32, out *fuse.AttrOut) (done bool, err error) {
	if f.nodes.lastTold(n.id).Mode&syscall.S_IFMT != syscall.S_IFREG {
		return false, nil
	}
	if info, ok := f.nodes.looks.take(thread, n, true); ok {
		f.answer(n, &info, out)
		return true, nil
	}
	if n.wrote.Load() {
		return false, nil
	}
	removals := f.nodes.looks.removals.Load()
	info, err := f.store.Stat(ctx, name)
	if err != nil || info.Ino != n.ino {
		return !stale(n, info, err), err
	}
	if c := f.files.hold(n.ino); c != nil {
		c.note(info)
		f.files.release(c)
	}
	f.nodes.looks.leave(thread, n, info, removals)
	f.answer(n, &info, out)
	return true, nil
}

func (f *FileSystem) answer(n *node, info *backends.Info, out *fuse.AttrOut) {
	f.nodes.told(n, info)
	fillAttr(&out.Attr, *info)
	out.SetTimeout(attrFor(*info))
}

// onInode runs opened where the inode is open here, else closed; an inode
// that is gone and not open is a name that the kernel has to look up again.
func (f *FileSystem) onInode(ino uint64, closed func() (backends.Info, error),
	opened func(*file) (backends.Info, error)) (backends.Info, error) {
	if c := f.files.hold(ino); c != nil {
		defer f.files.release(c)
		return opened(c)
	}
	info, err := closed()
	if errors.Is(err, backends.ErrNotExist) {
		return info, syscall.ESTALE
	}
	return info, err
}

// SetAttr implements fuse.RawFileSystem: chmod, chown, utimens, truncate.
func (f *FileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, name, err := f.nodes.find(in.NodeId)
	if err == nil {
		err = f.setAttr(cancel, n, in, out)
	}
	return f.status("set attributes", name, err)
}

func (f *FileSystem) setAttr(interrupt <-chan struct{}, n *node, in *fuse.SetAttrIn, out *fuse.AttrOut) error {
	attr := wanted(in)
	if attr.Size != nil && *attr.Size > backends.MaxContent {
		return syscall.EFBIG
	}
	// FATTR_FH comes with ftruncate only: it writes, so it needs what a write needs.
	if fh, ok := in.GetFh(); ok && attr.Size != nil {
		h, err := f.handles.find(fh)
		if err == nil {
			err = f.ready(interrupt, h, h.nonblock())
		}
		if err != nil {
			return err
		}
	}
	info, err := f.onInode(n.ino, func() (backends.Info, error) {
		return f.store.Update(f.life, n.ino, attr)
	}, func(c *file) (backends.Info, error) {
		return c.update(f.life, f.store, attr)
	})
	if err != nil {
		return err
	}
	f.answer(n, &info, out)
	return nil
}

// wanted returns the attributes that a SETATTR names.
func wanted(in *fuse.SetAttrIn) backends.Attr {
	now := time.Now()
	attr := backends.Attr{Ctime: now}
	if mode, ok := in.GetMode(); ok {
		attr.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		attr.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		attr.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		s := int64(min(size, 1<<62))
		attr.Size, attr.Mtime = &s, &now
	}
	if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
		attr.Atime = &now
	} else if atime, ok := in.GetATime(); ok {
		attr.Atime = &atime
	}
	if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
		attr.Mtime = &now
	} else if mtime, ok := in.GetMTime(); ok {
		attr.Mtime = &mtime
	}
	return attr
}
