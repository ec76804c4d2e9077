package fs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lockfs/backends"
	"lockfs/backends/record"
)

// file is an inode that is open on this mount, by whatever name.
//
// A file whose last name is removed stays readable and writable through its
// descriptors: this mount then keeps it in memory (orphan), for the store
// forgets an inode with its last name. Removed on this mount, its contents are
// read before; removed on another one they are gone, and reading them fails
// with ESTALE, as NFS does, unless the file was empty when last seen.
type file struct {
	ino uint64
	// last is the state when last seen.
	last  atomic.Pointer[attrs]
	opens int32 // guarded by files.mu

	// work is held while a truncation that an open has put off is carried out, so
	// that no write of another thread gets before it.
	work sync.Mutex

	// mu: calls of the store hold it for reading, who makes the orphan holds it for writing.
	mu      sync.RWMutex
	unknown bool // the orphan's contents are not the file's
	orphan  *record.Inode
}

func (c *file) seen(info backends.Info, err error) error {
	if err == nil {
		c.note(info)
	}
	return err
}

func (c *file) note(info backends.Info) { c.last.Store(c.last.Load().or(attrsOf(info))) }

// do runs live on the store, and dead on the orphan where the store no longer has the inode.
func (c *file) do(live func() error, dead func(*record.Inode) error) error {
	c.mu.RLock()
	if c.orphan == nil {
		err := live()
		c.mu.RUnlock()
		if !errors.Is(err, backends.ErrNotExist) {
			return err
		}
	} else {
		c.mu.RUnlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orphan == nil {
		c.unknown = c.last.Load().size > 0
		c.keep(record.Inode{Info: c.last.Load().info(c.ino)})
	}
	return dead(c.orphan)
}

// keep makes the orphan; called with mu held for writing.
func (c *file) keep(in record.Inode) {
	in.Nlink = 0
	c.orphan = &in
}

func (c *file) read(ctx context.Context, s backends.Store, off int64, n int) (data []byte, err error) {
	err = c.do(func() error {
		data, err = s.Read(ctx, c.ino, off, n)
		return err
	}, func(in *record.Inode) error {
		if c.unknown {
			return syscall.ESTALE
		}
		data = in.Read(off, n)
		return nil
	})
	return data, err
}

func (c *file) write(ctx context.Context, s backends.Store, off int64, data []byte) error {
	now := time.Now()
	return c.do(func() error {
		return c.seen(s.Write(ctx, c.ino, off, data, now))
	}, func(in *record.Inode) error {
		return in.Write(off, data, now)
	})
}

func (c *file) update(ctx context.Context, s backends.Store, attr backends.Attr) (info backends.Info, err error) {
	err = c.do(func() error {
		info, err = s.Update(ctx, c.ino, attr)
		return c.seen(info, err)
	}, func(in *record.Inode) error {
		if attr.Size != nil && *attr.Size == 0 {
			c.unknown = false
		}
		err := in.Update(attr)
		info = in.Info
		return err
	})
	return info, err
}

func (c *file) stat(ctx context.Context, s backends.Store) (info backends.Info, err error) {
	err = c.do(func() error {
		info, err = s.StatInode(ctx, c.ino)
		return c.seen(info, err)
	}, func(in *record.Inode) error {
		info = in.Info
		return nil
	})
	return info, err
}

func (c *file) truncate(ctx context.Context, s backends.Store, size int64) error {
	now := time.Now()
	_, err := c.update(ctx, s, backends.Attr{Size: &size, Mtime: &now, Ctime: now})
	return err
}

// files are the inodes open on this mount.
type files struct {
	mu    sync.Mutex
	byIno map[uint64]*file
}

func newFiles() *files { return &files{byIno: map[uint64]*file{}} }

// open counts one more handle of an inode.
func (t *files) open(info backends.Info) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.byIno[info.Ino]
	if c == nil {
		c = &file{ino: info.Ino}
		t.byIno[info.Ino] = c
	}
	c.note(info)
	c.opens++
	return c
}

// hold is open for an inode that has a handle already; nil where it has none.
func (t *files) hold(ino uint64) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.byIno[ino]
	if c != nil {
		c.opens++
	}
	return c
}

// release takes back one open or hold.
func (t *files) release(c *file) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.opens--; c.opens == 0 {
		delete(t.byIno, c.ino)
	}
}

// removing runs op, which removes name or puts another file in its place, and
// keeps the contents where this was the last name of a file that is open here.
func (f *FileSystem) removing(name string, op func() error) error {
	open := false
	for _, ino := range f.nodes.inodesOf(name) {
		if c := f.files.hold(ino); c != nil {
			open = true
			defer f.files.release(c)
		}
	}
	if !open {
		return op()
	}
	info, err := f.store.Stat(f.life, name)
	if err != nil || info.Mode&syscall.S_IFMT != syscall.S_IFREG || info.Nlink > 1 {
		return op() // which has a better word for what is wrong
	}
	c := f.files.hold(info.Ino)
	if c == nil {
		return op()
	}
	defer f.files.release(c)
	return f.keeping(c, info, op)
}

// keeping holds back writes through this mount from the reading to the removal.
func (f *FileSystem) keeping(c *file, info backends.Info, op func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, err := f.store.Read(f.life, c.ino, 0, backends.MaxContent)
	if err != nil {
		return op()
	}
	if err := op(); err != nil {
		return err
	}
	// Another node may have given it one more name meanwhile.
	if _, err := f.store.StatInode(f.life, c.ino); errors.Is(err, backends.ErrNotExist) && c.orphan == nil {
		info.Size = int64(len(data))
		c.keep(record.Inode{Info: info, Content: data})
	}
	return nil
}
