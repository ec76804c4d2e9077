package zookeeper

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
	"lockfs/backends/record"
)

// Create makes a file, directory or symbolic link. The inode's number is chosen before the first
// attempt, so an attempt whose answer was lost is known by it.
func (b *Backend) Create(ctx context.Context, name string, info backends.Info) (backends.Info, error) {
	info.Ino, info.Nlink, info.Size = record.NewIno(), 1, int64(len(info.Target))
	if info.IsDir() {
		info.Nlink = 2
	}
	out := newOutcome[backends.Info]()
	return out.get(b.op(ctx, "create", name, func(c *zk.Conn, lost bool) error {
		if name == "" {
			return backends.ErrExist
		}
		path, err := b.place(c, name)
		if err != nil {
			return err
		}
		e := entry{path: path, ino: info.Ino, dir: info.IsDir(), op: "-"}
		_, err = c.Multi(b.createEntry(e), &zk.CreateRequest{Path: b.inode(info.Ino),
			Data: record.Marshal(record.Inode{Info: info}), Acl: b.acl})
		switch {
		case errors.Is(err, zk.ErrNoNode):
			return errAgain // the directory has gone
		case errors.Is(err, zk.ErrNodeExists):
			if there, err := getEntry(c, path); err == nil && there.ino == info.Ino && lost {
				return out.set(info)
			} else if errors.Is(err, backends.ErrNotExist) {
				return errAgain
			} else if err != nil {
				return err
			}
			return backends.ErrExist
		case err != nil:
			return err
		}
		return out.set(info)
	}))
}

func (b *Backend) createEntry(e entry) *zk.CreateRequest {
	return &zk.CreateRequest{Path: e.path, Data: e.data(), Acl: b.acl}
}

// Link makes newName another name of a file.
func (b *Backend) Link(ctx context.Context, oldName, newName string) (backends.Info, error) {
	op := newOp()
	out := newOutcome[backends.Info]()
	return out.get(b.op(ctx, "link to", newName, func(c *zk.Conn, lost bool) error {
		from, err := b.resolve(c, oldName)
		if err != nil {
			return err
		}
		if from.dir {
			return backends.ErrIsDir
		}
		if newName == "" {
			return backends.ErrExist
		}
		path, err := b.place(c, newName)
		if err != nil {
			return err
		}
		in, err := b.getInode(c, from.ino)
		if errors.Is(err, backends.ErrNotExist) {
			return errAgain
		}
		if err != nil {
			return err
		}
		switch there, err := getEntry(c, path); {
		case err == nil && lost && there.op == op:
			return out.set(in.Info)
		case err == nil:
			return backends.ErrExist
		case !errors.Is(err, backends.ErrNotExist):
			return err
		}
		in.Nlink++
		in.Ctime = time.Now()
		err = transact(c, &zk.CheckVersionRequest{Path: from.path, Version: from.version}, b.setInode(in),
			b.createEntry(entry{path: path, ino: from.ino, op: op}))
		if err != nil {
			return err
		}
		return out.set(in.Info)
	}))
}

// unlink returns what takes one name from an inode. A directory's inode can only be deleted when it is empty.
func (b *Backend) unlink(in stored) any {
	if in.IsDir() || in.Nlink <= 1 {
		return &zk.DeleteRequest{Path: b.inode(in.Ino), Version: in.version}
	}
	in.Nlink--
	in.Ctime = time.Now()
	return b.setInode(in)
}

// Remove removes a name. Where the answer to an attempt was lost and the name is gone, it was this attempt.
func (b *Backend) Remove(ctx context.Context, name string, dir bool) error {
	return b.op(ctx, "remove", name, func(c *zk.Conn, lost bool) error {
		if name == "" {
			return backends.ErrNotEmpty // nobody removes the root
		}
		e, err := b.resolve(c, name)
		switch {
		case lost && errors.Is(err, backends.ErrNotExist):
			return nil
		case err != nil:
			return err
		case dir && !e.dir:
			return backends.ErrNotDir
		case !dir && e.dir:
			return backends.ErrIsDir
		}
		in, err := b.getInode(c, e.ino)
		if errors.Is(err, backends.ErrNotExist) {
			return errAgain
		}
		if err != nil {
			return err
		}
		err = transact(c, &zk.DeleteRequest{Path: e.path, Version: e.version}, b.unlink(in))
		if errors.Is(err, zk.ErrNotEmpty) {
			return backends.ErrNotEmpty
		}
		return err
	})
}

// Rename moves a name.
func (b *Backend) Rename(ctx context.Context, oldName, newName string, noReplace bool) error {
	op := newOp()
	return b.op(ctx, "rename "+oldName+" to", newName, func(c *zk.Conn, lost bool) error {
		if oldName == "" || newName == "" {
			return backends.ErrCrossDevice // the root stays where it is
		}
		path, err := b.place(c, newName)
		if err != nil {
			return err
		}
		to, toErr := getEntry(c, path)
		if toErr == nil && lost && to.op == op {
			return nil
		}
		if toErr != nil && !errors.Is(toErr, backends.ErrNotExist) {
			return toErr
		}
		from, err := b.resolve(c, oldName)
		if err != nil {
			return err
		}
		if toErr != nil {
			to = entry{path: path}
		}
		return b.rename(c, from, to, op, noReplace)
	})
}

// rename moves the entry from to the place to, which has an inode where it is taken.
func (b *Backend) rename(c *zk.Conn, from, to entry, op string, noReplace bool) error {
	taken := to.ino != 0
	switch {
	case taken && noReplace:
		return backends.ErrExist
	case taken && to.ino == from.ino:
		return nil
	case taken && to.dir && !from.dir:
		return backends.ErrIsDir
	case taken && !to.dir && from.dir:
		return backends.ErrNotDir
	}
	in, err := b.getInode(c, from.ino)
	if errors.Is(err, backends.ErrNotExist) {
		return errAgain
	}
	if err != nil {
		return err
	}
	if in.IsDir() && (in.children > 0 || strings.HasPrefix(to.path, b.inode(from.ino)+"/")) {
		return backends.ErrCrossDevice
	}
	in.Ctime = time.Now()
	ops := []any{&zk.DeleteRequest{Path: from.path, Version: from.version}}
	if in.IsDir() {
		// Deleting and creating it again proves that it is empty still, so no directory
		// ever moves below itself, whatever others move at the same time.
		ops = append(ops, &zk.DeleteRequest{Path: b.inode(in.Ino), Version: in.version},
			&zk.CreateRequest{Path: b.inode(in.Ino), Data: record.Marshal(in.Inode), Acl: b.acl})
	} else {
		ops = append(ops, b.setInode(in))
	}
	moved := entry{path: to.path, ino: from.ino, dir: from.dir, op: op}
	if !taken {
		return notEmpty(transact(c, append(ops, b.createEntry(moved))...), backends.ErrCrossDevice)
	}
	target, err := b.getInode(c, to.ino)
	if errors.Is(err, backends.ErrNotExist) {
		return errAgain
	}
	if err != nil {
		return err
	}
	if target.IsDir() && target.children > 0 {
		return backends.ErrNotEmpty
	}
	ops = append(ops, b.unlink(target), &zk.SetDataRequest{Path: to.path, Data: moved.data(), Version: to.version})
	err = transact(c, ops...)
	if errors.Is(err, zk.ErrNotEmpty) {
		return errAgain // which of the two, the next attempt says
	}
	return err
}

func notEmpty(err, kind error) error {
	if errors.Is(err, zk.ErrNotEmpty) {
		return kind
	}
	return err
}
