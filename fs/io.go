package fs

import (
	"bytes"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
)

// Read implements fuse.RawFileSystem.
func (f *FileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := f.alive(in.Fh)
	if err != nil {
		return nil, f.status("read", "", err)
	}
	if in.Offset >= backends.MaxContent {
		return fuse.ReadResultData(nil), fuse.OK
	}
	data, err := h.file.read(f.life, f.store, int64(in.Offset), min(int(in.Size), len(buf)))
	if err != nil {
		return nil, f.status("read", h.name, err)
	}
	return fuse.ReadResultData(data), fuse.OK
}

// alive returns a handle that has not lost a lock.
func (f *FileSystem) alive(fh uint64) (*handle, error) {
	h, err := f.handles.find(fh)
	if err == nil && f.table.Lost(fh) {
		err = syscall.EIO
	}
	return h, err
}

// Write implements fuse.RawFileSystem. Data is written through before it
// returns, so nothing is left to do at FSYNC, FLUSH or unlock.
func (f *FileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, err := f.alive(in.Fh)
	if err != nil {
		return 0, f.status("write", "", err)
	}
	h.flags.Store(in.Flags)
	off := int64(min(in.Offset, 1<<62))
	if in.Flags&syscall.O_APPEND != 0 {
		off = backends.Append
	}
	if off+int64(len(data)) > backends.MaxContent {
		return 0, fuse.Status(syscall.EFBIG)
	}
	err = f.ready(cancel, h, in.Flags&syscall.O_NONBLOCK != 0)
	if err == nil {
		// go-fuse uses the buffer again; the store may not be done with it when its context has ended.
		err = h.file.write(f.life, f.store, off, bytes.Clone(data))
	}
	if err != nil {
		return 0, f.status("write", h.name, err)
	}
	return uint32(len(data)), fuse.OK
}

// Fsync implements fuse.RawFileSystem.
func (f *FileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	_, err := f.alive(in.Fh)
	return f.status("fsync", "", err)
}

// Fallocate implements fuse.RawFileSystem: it can make a file longer.
func (f *FileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, err := f.alive(in.Fh)
	switch {
	case err != nil:
		return f.status("fallocate", "", err)
	case in.Mode != 0:
		return fuse.Status(syscall.EOPNOTSUPP)
	case in.Offset > backends.MaxContent || in.Length > backends.MaxContent-in.Offset:
		return fuse.Status(syscall.EFBIG)
	}
	err = f.ready(cancel, h, h.nonblock())
	if err != nil {
		return f.status("fallocate", h.name, err)
	}
	info, err := h.file.stat(f.life, f.store)
	if size := int64(in.Offset + in.Length); err == nil && size > info.Size {
		err = h.file.truncate(f.life, f.store, size)
	}
	return f.status("fallocate", h.name, err)
}

// Ioctl implements fuse.RawFileSystem: there are none.
func (f *FileSystem) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}

// StatFs implements fuse.RawFileSystem. The store has no figures of its own;
// these say that there is room.
func (f *FileSystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const blocks, inodes = 1 << 20, 1 << 20
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, Blocks: blocks, Bfree: blocks, Bavail: blocks,
		Files: inodes, Ffree: inodes, NameLen: backends.MaxComponent}
	return fuse.OK
}
