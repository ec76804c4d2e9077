package fs

import (
	"sync"
	"syscall"
	"time"

	"lockfs/fs/locks"
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
// retries remembers who was told so. The kernel repeats once only, so an open
// that was told already must never be told again: the program would see ESTALE.
type retries struct {
	mu   sync.Mutex
	told map[uint32]retry // by the caller's thread
}

type retry struct {
	name    string
	expires time.Time
}

// retryFor is how long a thread may take to come back. It comes at once.
const retryFor = 2 * time.Second

// maxRetries bounds the table; threads that were killed meanwhile never come back.
const maxRetries = 1024

func newRetries() *retries { return &retries{told: map[uint32]retry{}} }

// add says that the thread is told to look the name up again. It returns false where it
// can't be known again: it lives in another pid namespace.
func (r *retries) add(thread uint32, name string) bool {
	if thread == 0 {
		return false
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) >= maxRetries {
		for t, told := range r.told {
			if now.After(told.expires) {
				delete(r.told, t)
			}
		}
	}
	r.told[thread] = retry{name, now.Add(retryFor)}
	return true
}

// expected reports whether the thread was told to look the name up again.
func (r *retries) expected(thread uint32, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	told, ok := r.told[thread]
	return ok && told.name == name && time.Now().Before(told.expires)
}

// take is expected, and forgets it: the thread has come back.
func (r *retries) take(thread uint32, name string) bool {
	expected := r.expected(thread, name)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, thread)
	return expected
}

// lookAgain is the error that makes the kernel repeat an open.
func (f *FileSystem) lookAgain(thread uint32, name string) error {
	f.retries.add(thread, name)
	return syscall.ESTALE
}

// discard gives up a handle that is not to be.
func (f *FileSystem) discard(h *handle) {
	f.table.ReleaseHandle(h.name, h.id)
	f.files.release(h.file)
}

// whole is a request for what an open for writing takes.
func (h *handle) whole() locks.Request {
	return locks.Request{Name: h.name, Handle: h.id,
		Owner: locks.Owner{Kind: locks.Description, ID: h.id},
		Door:  locks.Open, Lock: wholeWrite, Writable: h.writable, PID: h.pid}
}
