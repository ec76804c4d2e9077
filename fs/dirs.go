package fs

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
)

// dirHandle is an open directory: one listing, taken at opendir and again at rewinddir.
type dirHandle struct {
	name    string
	mu      sync.Mutex
	entries []backends.Entry // ".", "..", then sorted by name
	read    bool             // since the listing was taken
}

// OpenDir implements fuse.RawFileSystem.
func (f *FileSystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, name, err := f.nodes.find(in.NodeId)
	if err != nil {
		return f.status("opendir", name, err)
	}
	if err := f.current(n, name); err != nil {
		return f.status("opendir", name, err)
	}
	d := &dirHandle{name: name}
	if d.entries, err = f.list(name); err != nil {
		return f.status("opendir", name, err)
	}
	out.Fh = f.handles.addDir(d)
	return fuse.OK
}

func (f *FileSystem) list(dir string) ([]backends.Entry, error) {
	found, err := f.store.List(f.life, dir)
	if errors.Is(err, backends.ErrNotExist) {
		return nil, syscall.ESTALE
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b backends.Entry) int { return strings.Compare(a.Name, b.Name) })
	directory := backends.Info{Mode: syscall.S_IFDIR}
	return append([]backends.Entry{{Name: ".", Info: directory}, {Name: "..", Info: directory}}, found...), nil
}

// ReadDir implements fuse.RawFileSystem.
func (f *FileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(_ string, e backends.Entry, next uint64) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Mode, Off: next})
	})
}

// ReadDirPlus implements fuse.RawFileSystem. Each entry counts as a lookup.
func (f *FileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(dir string, e backends.Entry, next uint64) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Mode, Off: next})
		if entry == nil {
			return false
		}
		if e.Ino == 0 {
			return true // "." and "..": no lookup
		}
		if name, err := join(dir, e.Name); err == nil {
			f.fillEntry(entry, name, e.Info, false)
		}
		return true
	})
}

// readDir gives the entries from an offset on to add until it has no more room.
func (f *FileSystem) readDir(in *fuse.ReadIn, add func(dir string, e backends.Entry, next uint64) bool) fuse.Status {
	d, err := f.handles.findDir(in.Fh)
	if err != nil {
		return f.status("readdir", "", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.Offset == 0 && d.read {
		entries, err := f.list(d.name)
		if err != nil {
			return f.status("readdir", d.name, err)
		}
		d.entries = entries
	}
	d.read = true
	for i := in.Offset; i < uint64(len(d.entries)); i++ {
		if !add(d.name, d.entries[i], i+1) {
			break
		}
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FileSystem) ReleaseDir(in *fuse.ReleaseIn) { f.handles.removeDir(in.Fh) }

// FsyncDir implements fuse.RawFileSystem: every change is written through at once.
func (f *FileSystem) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }
