package fs

import (
	"sync/atomic"
	"time"

	"lockfs/backends"
)

// Before it opens a file the kernel checks the permissions, and as it is not to believe what it
// knows of a regular file (attr.go) it asks for the attributes, each time, in the same thread and the same
// system call. So an open comes as GETATTR and OPEN, and both need to know what the name is now. GETATTR
// asks the store by name and leaves the answer for the OPEN that follows: it is the truth of a moment within the
// program's own open(2), as it would be were the file system faster.
//
// An open that locks doesn't use it: what it has waited for may have changed the name. So GETATTR asks by inode, which ZooKeeper
// answers with a request less, where the last open was for writing.
//
// A CREATE is followed by GETATTR too; that one gets what CREATE has just made, and leaves nothing for an OPEN.

// look is what the store said of a node's name.
type look struct {
	thread   uint32
	node     *node
	info     backends.Info
	at       time.Time
	removals uint64
	created  bool // left by CREATE, for GETATTR only
}

// lookFor bounds how old a look may be. OPEN follows at once, except on a machine that is overloaded.
const lookFor = 50 * time.Millisecond

// looks has the last look of each thread, a few of them: threads that meet in a place forget each other's.
type looks struct {
	last [256]atomic.Pointer[look]
	// removals counts what this mount has removed or renamed: of what is open here the contents are kept, so that
	// an open must not come after a removal that has not seen it.
	removals atomic.Uint64
}

func (l *looks) place(thread uint32) *atomic.Pointer[look] {
	return &l.last[thread%uint32(len(l.last))]
}

// leave is called with the number of removals before the store was asked.
func (l *looks) leave(thread uint32, n *node, info backends.Info, removals uint64) {
	if thread != 0 { // 0: in another pid namespace, and many are
		l.place(thread).Store(&look{thread: thread, node: n, info: info, at: time.Now(), removals: removals})
	}
}

// leaveCreated is called when the thread has made the file.
func (l *looks) leaveCreated(thread uint32, n *node, info backends.Info) {
	if thread != 0 {
		l.place(thread).Store(&look{thread: thread, node: n, info: info, at: time.Now(), removals: l.removals.Load(), created: true})
	}
}

// take returns the thread's look at the node, if that was the last thing that it did here; created says of which kind.
func (l *looks) take(thread uint32, n *node, created bool) (info backends.Info, ok bool) {
	if thread == 0 {
		return info, false
	}
	last := l.place(thread).Swap(nil)
	if last == nil || last.thread != thread || last.node != n || last.created != created || time.Since(last.at) > lookFor || last.removals != l.removals.Load() {
		return info, false
	}
	return last.info, true
}
