package zookeeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
	"lockfs/backends/record"
)

// Stat returns what name is.
func (b *Backend) Stat(ctx context.Context, name string) (backends.Info, error) {
	out := newOutcome[backends.Info]()
	return out.get(b.op(ctx, "stat", name, func(c *zk.Conn, _ bool) error {
		e, err := b.resolve(c, name)
		if err != nil {
			return err
		}
		in, err := b.getInode(c, e.ino)
		if errors.Is(err, backends.ErrNotExist) {
			return errAgain // removed or replaced since the entry was read
		}
		if err != nil {
			return err
		}
		return out.set(in.Info)
	}))
}

// StatInode returns the same by inode number.
func (b *Backend) StatInode(ctx context.Context, ino uint64) (backends.Info, error) {
	out := newOutcome[backends.Info]()
	return out.get(b.inodeOp(ctx, "stat", ino, func(in stored) error { return out.set(in.Info) }))
}

// Read returns a part of a file's contents.
func (b *Backend) Read(ctx context.Context, ino uint64, off int64, n int) ([]byte, error) {
	out := newOutcome[[]byte]()
	return out.get(b.inodeOp(ctx, "read", ino, func(in stored) error {
		if in.IsDir() {
			return backends.ErrIsDir
		}
		return out.set(in.Read(off, n))
	}))
}

func (b *Backend) inodeOp(ctx context.Context, what string, ino uint64, f func(stored) error) error {
	return b.op(ctx, what, fmt.Sprintf("inode %d", ino), func(c *zk.Conn, _ bool) error {
		in, err := b.getInode(c, ino)
		if err != nil {
			return err
		}
		return f(in)
	})
}

// listAtOnce is how many requests of a List are on their way at the same time.
const listAtOnce = 64

// List returns the entries of a directory.
func (b *Backend) List(ctx context.Context, dir string) ([]backends.Entry, error) {
	out := newOutcome[[]backends.Entry]()
	return out.get(b.op(ctx, "list", dir, func(c *zk.Conn, _ bool) error {
		e, err := b.resolve(c, dir)
		if err != nil {
			return err
		}
		if !e.dir {
			return backends.ErrNotDir
		}
		kids, _, err := c.Children(b.inode(e.ino))
		if errors.Is(err, zk.ErrNoNode) {
			return errAgain
		}
		if err != nil {
			return err
		}
		entries, err := b.readEntries(c, b.inode(e.ino), kids)
		if err != nil {
			return err
		}
		return out.set(entries)
	}))
}

// readEntries reads the inodes behind entries, several at a time. Entries that go meanwhile are left out.
func (b *Backend) readEntries(c *zk.Conn, dir string, kids []string) ([]backends.Entry, error) {
	found := make([]*backends.Entry, len(kids))
	errs := make([]error, listAtOnce)
	var all sync.WaitGroup
	for w := range min(listAtOnce, len(kids)) {
		all.Go(func() {
			for i := w; i < len(kids) && errs[w] == nil; i += listAtOnce {
				found[i], errs[w] = b.readEntry(c, dir, kids[i])
			}
		})
	}
	all.Wait()
	entries := make([]backends.Entry, 0, len(kids))
	for _, e := range found {
		if e != nil {
			entries = append(entries, *e)
		}
	}
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// readEntry reads the inode behind one entry, nil where it has gone meanwhile.
func (b *Backend) readEntry(c *zk.Conn, dir, kid string) (*backends.Entry, error) {
	name, ok := unescape(kid)
	if !ok {
		return nil, fmt.Errorf("znode %s/%s: %w", dir, kid, backends.ErrForeign)
	}
	for range 100 {
		e, err := getEntry(c, dir+"/"+kid)
		if errors.Is(err, backends.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		in, err := b.getInode(c, e.ino)
		if errors.Is(err, backends.ErrNotExist) {
			continue // replaced meanwhile
		}
		if err != nil {
			return nil, err
		}
		return &backends.Entry{Name: name, Info: in.Info}, nil
	}
	return nil, fmt.Errorf("znode %s/%s: its inode is missing: %w", dir, kid, backends.ErrForeign)
}

// Write writes to a file. An append whose answer was lost is found again by what stands where it would be.
func (b *Backend) Write(ctx context.Context, ino uint64, off int64, data []byte, mtime time.Time) (backends.Info, error) {
	data = bytes.Clone(data) // the attempt may outlive the call
	tried := int64(-1)       // the size at which an append was tried last
	return b.modify(ctx, "write to", ino, func(in *stored, lost bool) (change bool, err error) {
		if in.IsDir() {
			return false, backends.ErrIsDir
		}
		if lost && off == backends.Append && tried >= 0 && bytes.Equal(in.Read(tried, len(data)), data) && int64(len(in.Content)) > tried {
			return false, nil
		}
		tried = int64(len(in.Content))
		return true, in.Write(off, data, mtime)
	})
}

// Update changes attributes.
func (b *Backend) Update(ctx context.Context, ino uint64, attr backends.Attr) (backends.Info, error) {
	return b.modify(ctx, "change", ino, func(in *stored, _ bool) (bool, error) {
		if attr.Size != nil && in.IsDir() {
			return false, backends.ErrIsDir
		}
		return true, in.Update(attr)
	})
}

// modify reads an inode, changes it, and writes it where nobody else has done so meanwhile.
func (b *Backend) modify(ctx context.Context, what string, ino uint64, f func(in *stored, lost bool) (bool, error)) (backends.Info, error) {
	out := newOutcome[backends.Info]()
	return out.get(b.op(ctx, what, fmt.Sprintf("inode %d", ino), func(c *zk.Conn, lost bool) error {
		in, err := b.getInode(c, ino)
		if err != nil {
			return err
		}
		change, err := f(&in, lost)
		if err != nil {
			return err
		}
		if change {
			_, err = c.Set(b.inode(ino), record.Marshal(in.Inode), in.version)
		}
		switch {
		case errors.Is(err, zk.ErrBadVersion):
			return errAgain
		case errors.Is(err, zk.ErrNoNode):
			return backends.ErrNotExist
		case err != nil:
			return err
		}
		return out.set(in.Info)
	}))
}
