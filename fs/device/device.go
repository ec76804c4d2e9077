// Package device serves /dev/fuse: it reads the kernel's requests and writes the answers.
//
// The one idea: a thread that reads requests goes on reading as long as they are answered without waiting for anything, so that locks that go from one
// program to the next on this node are served by one thread, without another one being woken. What may take its time says so before (Call.MayWait),
// and another thread reads on meanwhile. A lock call that waits for others keeps no thread and no goroutine at all: whoever lets it in writes the answer.
//
// All but lock calls are decoded and encoded by go-fuse (fuse.ProtocolServer).
package device

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Locker serves lock calls.
type Locker interface {
	// SetLock is a SETLK, or with wait a SETLKW. It is called by the thread that reads requests. c is answered once, here or later
	// by anybody. in is good as long as c is.
	SetLock(c *Call, in *fuse.LkIn, wait bool)
}

// Requests by the kernel's numbers (linux/fuse.h); go-fuse has no names for them.
const (
	opForget      = 2
	opReadlink    = 5
	opRead        = 15
	opStatfs      = 17
	opRelease     = 18
	opGetxattr    = 22
	opListxattr   = 23
	opInit        = 26
	opReaddir     = 28
	opSetlk       = 32
	opSetlkw      = 33
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opReaddirplus = 44
)

const (
	headerSize = int(unsafe.Sizeof(fuse.InHeader{}))
	lockSize   = int(unsafe.Sizeof(fuse.LkIn{}))
	// around is room for what comes with the data of a READ or WRITE.
	around = 8192
	// small is room for every answer that carries no data.
	small = 1024
)

const (
	// mostReaders is how many threads go on reading after something that took its time.
	mostReaders = 4
	// calm is after how many requests in a row that did not wait for anything one thread is enough.
	calm = 16
)

// Conn is a mounted /dev/fuse.
type Conn struct {
	file    *os.File
	fd      int
	locker  Locker
	proto   *fuse.ProtocolServer
	options *fuse.MountOptions
	log     *slog.Logger
	buffers sync.Pool // of *[]byte, each with room for the largest request or answer

	// readers are the threads that read, or serve what takes no time.
	//
	// Invariant: there is one, or it is about to be started, until the mount is gone.
	readers atomic.Int32
	quick   atomic.Int32 // requests in a row that took no time
	loops   sync.WaitGroup
	gone    chan struct{} // closed when the mount is gone
	end     sync.Once

	unanswered sync.WaitGroup
	mu         sync.Mutex
	waiting    map[uint64]*Call // who is to be told of an interrupt, by the request's number
}

// New answers the kernel's first request. The file is the Conn's from then on, also where there is an error. options are those of
// fuse.NewProtocolServer; of the limits MaxWrite counts.
func New(file *os.File, fs fuse.RawFileSystem, locker Locker, options *fuse.MountOptions, log *slog.Logger) (*Conn, error) {
	c := &Conn{file: file, fd: int(file.Fd()), locker: locker, proto: fuse.NewProtocolServer(fs, options), options: options, log: log,
		gone: make(chan struct{}), waiting: map[uint64]*Call{}}
	c.buffers.New = func() any { b := make([]byte, options.MaxWrite+around); return &b }
	r := &reader{conn: c, buf: c.buffer()}
	if err := r.receive(); err != nil {
		return nil, errors.Join(fmt.Errorf("the kernel's first request: %w", err), file.Close())
	}
	if op := r.header().Opcode; op != opInit {
		return nil, errors.Join(fmt.Errorf("the kernel's first request is %d, not INIT", op), file.Close())
	}
	r.decoded()
	c.buffers.Put(r.buf)
	c.readers.Store(1)
	c.loops.Add(1)
	go c.read()
	return c, nil
}

// Gone is closed when the mount is: no requests come any more.
func (c *Conn) Gone() <-chan struct{} { return c.gone }

// Pending reports whether the kernel has requests that no thread has read yet.
func (c *Conn) Pending() bool {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents == unix.POLLIN
}

// Close waits until all requests have been answered, and closes the device. It is to be called when the mount is gone, and who serves the requests has been told to
// make an end.
func (c *Conn) Close() error {
	<-c.gone
	c.loops.Wait()
	c.unanswered.Wait()
	return c.file.Close()
}

func (c *Conn) buffer() *[]byte { return c.buffers.Get().(*[]byte) }

// reader is a thread that reads requests and serves them.
type reader struct {
	conn *Conn
	// buf is nil while it serves what may take its time, and another one reads.
	buf     *[]byte
	request []byte
	room    [small]byte // for an answer
}

// read is a reader's life.
func (c *Conn) read() {
	defer c.loops.Done()
	r := &reader{conn: c, buf: c.buffer()}
	for {
		if err := r.receive(); err != nil {
			c.end.Do(func() {
				if !errors.Is(err, syscall.ENODEV) {
					c.log.Error("reading requests from the kernel failed", "error", err)
				}
				close(c.gone)
			})
			break
		}
		r.serve()
		if !r.goesOn() {
			break
		}
	}
	if r.buf != nil {
		c.buffers.Put(r.buf)
	}
}

// receive reads a request.
func (r *reader) receive() error {
	for {
		n, err := syscall.Read(r.conn.fd, *r.buf)
		switch {
		case err == syscall.EINTR || err == syscall.ENOENT || err == syscall.EAGAIN: // ENOENT: its caller went away just then
		case err != nil:
			return os.NewSyscallError("read /dev/fuse", err)
		case n < headerSize:
			return fmt.Errorf("read /dev/fuse: %d bytes are no request", n)
		default:
			r.request = (*r.buf)[:n]
			return nil
		}
	}
}

func (r *reader) header() *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&r.request[0])) }

func (r *reader) serve() {
	switch op := r.header().Opcode; op {
	case opSetlk, opSetlkw:
		if len(r.request) < lockSize {
			r.conn.write(r.header().Unique, fuse.EIO)
			return
		}
		r.lock(op == opSetlkw)
	case opInterrupt:
		if !r.conn.interrupted((*fuse.InterruptIn)(unsafe.Pointer(&r.request[0])).Unique) {
			r.decoded()
		}
	case opStatfs, opForget, opBatchForget, opRelease: // wait for nothing
		r.decoded()
	default:
		r.pass()
		r.decoded()
	}
}

// pass has another thread read on.
func (r *reader) pass() {
	c := r.conn
	if r.buf == nil {
		return
	}
	r.request = bytes.Clone(r.request)
	c.buffers.Put(r.buf)
	r.buf = nil
	c.quick.Store(0)
	if c.readers.Add(-1) == 0 {
		c.readers.Add(1)
		c.loops.Add(1)
		go c.read()
	}
}

// goesOn reports whether there is need for this thread, after a request.
func (r *reader) goesOn() bool {
	c := r.conn
	r.request = nil
	if r.buf == nil {
		if c.readers.Add(1) > mostReaders && c.spared() {
			return false
		}
		r.buf = c.buffer()
		return true
	}
	return c.quick.Add(1) <= calm || !c.spared()
}

// spared takes a reader off, unless it is the last.
func (c *Conn) spared() bool {
	for {
		n := c.readers.Load()
		if n <= 1 {
			return false
		}
		if c.readers.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// decoded serves a request by go-fuse.
func (r *reader) decoded() {
	out := r.room[:]
	switch r.header().Opcode {
	case opRead, opReaddir, opReaddirplus, opReadlink, opGetxattr, opListxattr, opIoctl:
		b := r.conn.buffer()
		defer r.conn.buffers.Put(b)
		out = *b
	}
	n, status := r.conn.proto.HandleRequest([][]byte{r.request}, [][]byte{out})
	switch {
	case status != fuse.OK: // go-fuse could not make anything of it, or had no room
		r.conn.write(r.header().Unique, status)
	case n > 0:
		r.conn.send(out[:n])
	}
}

// answer is what there is to say of a request that has no result but how it went: struct fuse_out_header of linux/fuse.h.
type answer struct {
	length uint32
	errno  int32
	unique uint64
}

func (c *Conn) write(unique uint64, status fuse.Status) {
	a := answer{uint32(unsafe.Sizeof(answer{})), -int32(status), unique}
	c.send((*[unsafe.Sizeof(a)]byte)(unsafe.Pointer(&a))[:])
}

func (c *Conn) send(out []byte) {
	// ENOENT: the caller has gone. ENODEV: the mount has.
	if _, err := syscall.Write(c.fd, out); err != nil && err != syscall.ENOENT && err != syscall.ENODEV {
		c.log.Warn("answering the kernel failed", "error", os.NewSyscallError("write /dev/fuse", err))
	}
}
