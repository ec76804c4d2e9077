package fs

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"lockfs/backends"
)

// handle is an open file description. There may be many thousands, so it is kept small.
type handle struct {
	id   uint64
	file *file
	// name is the one it was opened under: the lock of every call through it.
	// A rename doesn't change it.
	name string
	// pid is the process that opened it.
	pid uint32
	// flags are the descriptor's as last seen: fcntl(F_SETFL) can change O_NONBLOCK and O_APPEND.
	flags atomic.Uint32
	// writable: opened for writing (or with O_TRUNC, which writes).
	writable bool
	// created: its open made the file, O_EXCL.
	created bool

	mu sync.Mutex // guards what follows
	// bare: open for writing without the lock that the open should have
	// taken; the first explicit call or the first write ends it.
	bare bool
	// truncate: O_TRUNC is put off until the write lock is had.
	truncate bool
}

var wholeWrite = backends.Lock{Range: backends.Whole, Mode: backends.Write}

func (h *handle) nonblock() bool { return h.flags.Load()&syscall.O_NONBLOCK != 0 }

// setBare says that the open was let through without its lock.
func (h *handle) setBare(truncate bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bare, h.truncate = true, truncate
}

func (h *handle) isBare() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bare
}

// settle ends bareness; it returns whether a truncation is due.
func (h *handle) settle() (truncate bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bare = false
	return h.truncate
}

// settled reports whether a lock call has no more to do than to lock.
func (h *handle) settled() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.bare && !h.truncate
}

func (h *handle) truncated() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.truncate = false
}

// handles is the table of handles, of files and of directories, by the number
// that the kernel has. Numbers are never used twice: they are the owners of locks.
type handles struct {
	last  atomic.Uint64
	mu    sync.RWMutex
	files map[uint64]*handle
	dirs  map[uint64]*dirHandle
}

func newHandles() *handles {
	return &handles{files: map[uint64]*handle{}, dirs: map[uint64]*dirHandle{}}
}

// next returns a number for a new handle.
func (t *handles) next() uint64 { return t.last.Add(1) }

func (t *handles) add(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.files[h.id] = h
}

func (t *handles) find(id uint64) (*handle, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	h := t.files[id]
	if h == nil {
		return nil, syscall.EBADF
	}
	return h, nil
}

func (t *handles) remove(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.files[id]
	delete(t.files, id)
	return h
}

// inodes returns the inodes that are open under a name.
func (t *handles) inodes(name string) []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var inos []uint64
	for _, h := range t.files {
		if h.name == name && !slices.Contains(inos, h.file.ino) {
			inos = append(inos, h.file.ino)
		}
	}
	return inos
}

func (t *handles) addDir(d *dirHandle) uint64 {
	id := t.next()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dirs[id] = d
	return id
}

func (t *handles) findDir(id uint64) (*dirHandle, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	d := t.dirs[id]
	if d == nil {
		return nil, syscall.EBADF
	}
	return d, nil
}

func (t *handles) removeDir(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.dirs, id)
}
