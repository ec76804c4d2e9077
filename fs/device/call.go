package device

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Call is a lock call that has not been answered yet.
type Call struct {
	conn *Conn
	// reader is the thread that serves it; for MayWait only.
	reader *reader
	in     fuse.LkIn // the buffer may become another request's
	// What follows is guarded by the Conn's mutex.
	interrupt func()
	answered  bool
}

// lock serves a lock call.
func (r *reader) lock(wait bool) {
	c := &Call{conn: r.conn, reader: r, in: *(*fuse.LkIn)(unsafe.Pointer(&r.request[0]))}
	c.conn.unanswered.Add(1)
	defer func() {
		if reason := recover(); reason != nil {
			c.Answer(c.conn.options.PanicHandler(reason))
		}
	}()
	c.conn.locker.SetLock(c, &c.in, wait)
}

// MayWait is to be called, by SetLock only, before it does what may take its time.
func (c *Call) MayWait() { c.reader.pass() }

// OnInterrupt has f called, once, when the caller has got a signal, if the call has not been answered by then. f must not wait for anything. An interrupt that
// comes before is not lost: the kernel says it again.
func (c *Call) OnInterrupt(f func()) {
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	if !c.answered {
		c.interrupt = f
		c.conn.waiting[c.in.Unique] = c
	}
}

// Answer answers. Only the first time counts.
func (c *Call) Answer(status fuse.Status) {
	if c.take() {
		c.conn.write(c.in.Unique, status)
		c.conn.unanswered.Done()
	}
}

func (c *Call) take() bool {
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	if c.answered {
		return false
	}
	c.answered = true
	if c.interrupt != nil {
		delete(c.conn.waiting, c.in.Unique)
	}
	return true
}

// interrupted tells a call of a signal. false: there is none that wants to know.
func (c *Conn) interrupted(unique uint64) bool {
	c.mu.Lock()
	call := c.waiting[unique]
	delete(c.waiting, unique)
	c.mu.Unlock()
	if call == nil {
		return false
	}
	call.interrupt()
	return true
}
