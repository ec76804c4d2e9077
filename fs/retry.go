package fs

import (
	"sync"
	"syscall"
	"time"

	"lockfs/backends"
)

// When an open fails with ESTALE, the kernel repeats it once, looking up the
// last component of the name anew, in the same thread. That is used for more
// than stale names: a thread that was told to look again gets a *private*
// nodeid from its next LOOKUP of that name, one that nobody else has, and
// that the kernel is not to remember (entry time-out 0).
//
// A handle that was let through without its lock ('bare') waits for it in its
// first WRITE, and the kernel keeps its inode locked meanwhile. On the shared inode that
// would lock out the holder too (write, unlink, truncate, even another's
// open with O_TRUNC), so such a handle is to have an inode of its own.
//
// The kernel repeats once only, so what would make it repeat twice is answered otherwise:
//
//   - An open for writing takes its lock first and looks at the name then; the thread
//     keeps handle and lock for when it comes back, be it with OPEN or CREATE (retry.handle).
//   - When it comes back with OPEN, the name was looked up in that same call; should it be gone
//     again, the open gets the removed file, as it would had it been a little faster.
//   - A CREATE that would have to wait has made the file; should that be gone when the
//     thread looks again, LOOKUP makes it once more (retry.create).
//
// retries remembers who was told so, and for how long.
type retries struct {
	mu   sync.Mutex
	told map[uint32]*retry // by the caller's thread
}

type retry struct {
	name   string
	create *backends.Info
	handle *handle // owned by the retry until it is taken
	bare   bool    // of handle
	// info is what the name was when the thread was told; nil: not known. doubted: LOOKUP has said so again, and could not ask.
	info    *backends.Info
	doubted bool
	late    bool // it did not come back within retryFor
	expiry  *time.Timer
}

// retryFor is how long a handle, and the lock that it may have, is kept for the
// thread to come back. It comes at once, or was killed; on a machine that is
// overloaded it comes later, and begins anew.
const retryFor = 500 * time.Millisecond

// rememberFor is how long a thread is known to have been told. Were it told
// twice in one call, its program would see ESTALE.
const rememberFor = time.Minute

func newRetries() *retries { return &retries{told: map[uint32]*retry{}} }

// expected returns what the thread was told about the name; nil: nothing.
func (r *retries) expected(thread uint32, name string) *retry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if told := r.told[thread]; told != nil && told.name == name {
		return told
	}
	return nil
}

// doubt notes that LOOKUP has said what was known when the thread was told.
func (r *retries) doubt(told *retry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	told.doubted = true
}

// takeRetry is expected, and forgets it: the thread has come back. A handle that it has is the caller's now.
func (f *FileSystem) takeRetry(thread uint32, name string) *retry {
	r := f.retries
	r.mu.Lock()
	told := r.told[thread]
	delete(r.told, thread)
	r.mu.Unlock()
	if told == nil {
		return nil
	}
	told.expiry.Stop()
	if told.name != name {
		f.discardRetry(told)
		return nil
	}
	return told
}

func (f *FileSystem) discardRetry(told *retry) {
	if told.handle != nil {
		f.discard(told.handle)
	}
}

// lookAgain returns the error that makes the kernel repeat an open, and remembers what for. It
// can't be remembered of a thread in another pid namespace.
func (f *FileSystem) lookAgain(thread uint32, told retry) error {
	f.takeRetry(thread, "\x00")
	if thread == 0 {
		f.discardRetry(&told)
		return syscall.ESTALE
	}
	r := f.retries
	r.mu.Lock()
	defer r.mu.Unlock()
	told.expiry = time.AfterFunc(retryFor, func() { f.lateRetry(thread, &told) })
	r.told[thread] = &told
	return syscall.ESTALE
}

// lateRetry lets go of the handle of a thread that has not come back, and later forgets the thread.
func (f *FileSystem) lateRetry(thread uint32, told *retry) {
	r := f.retries
	r.mu.Lock()
	if r.told[thread] != told {
		r.mu.Unlock()
		return
	}
	h, forgotten := told.handle, told.late
	told.handle, told.bare, told.late = nil, false, true
	if forgotten {
		delete(r.told, thread)
	} else {
		told.expiry.Reset(rememberFor)
	}
	r.mu.Unlock()
	if h != nil {
		f.discard(h)
	}
}
