package device

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel is the other side of a device: a socket that keeps requests and answers apart, as /dev/fuse does.
type kernel struct {
	*testing.T
	file *os.File
	conn *Conn
	last uint64

	mu      sync.Mutex
	answers map[uint64][]fuse.Status
	came    chan struct{} // closed, and replaced, by each answer
}

// files answers a GETATTR when it is let go on, or at once.
type files struct {
	fuse.RawFileSystem
	held map[uint64]chan struct{} // by nodeid
}

func (f *files) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if gate := f.held[in.NodeId]; gate != nil {
		<-gate
	}
	out.Ino = in.NodeId
	return fuse.OK
}

// locker is a Locker made of a function.
type locker func(c *Call, in *fuse.LkIn, wait bool)

func (f locker) SetLock(c *Call, in *fuse.LkIn, wait bool) { f(c, in, wait) }

func connect(t *testing.T, l locker, held map[uint64]chan struct{}) *kernel {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{T: t, file: os.NewFile(uintptr(pair[0]), "kernel"), answers: map[uint64][]fuse.Status{}, came: make(chan struct{})}
	listening := make(chan struct{})
	go func() { defer close(listening); k.listen() }()
	send(k, opInit, 0, &fuse.InitIn{Major: 7, Minor: 40, MaxReadAhead: 1 << 16})
	k.conn, err = New(os.NewFile(uintptr(pair[1]), "device"), &files{fuse.NewDefaultRawFileSystem(), held}, l,
		&fuse.MountOptions{MaxWrite: 1 << 16, EnableLocks: true, Logger: slog.NewLogLogger(slog.DiscardHandler, 0),
			PanicHandler: func(any) fuse.Status { return fuse.EIO }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	k.expect(k.last, fuse.OK)
	t.Cleanup(func() {
		if err := unix.Shutdown(int(k.file.Fd()), unix.SHUT_WR); err != nil { // the mount is gone
			t.Error(err)
		}
		<-k.conn.Gone()
		if err := k.conn.Close(); err != nil {
			t.Error(err)
		}
		<-listening
		k.file.Close()
	})
	return k
}

// listen takes answers until the device is closed.
func (k *kernel) listen() {
	buf := make([]byte, 1<<17)
	for {
		n, err := k.file.Read(buf)
		if err != nil || n == 0 {
			if err != nil && err != io.EOF {
				k.Error(err)
			}
			return
		}
		a := (*answer)(unsafe.Pointer(&buf[0]))
		if int(a.length) != n {
			k.Errorf("an answer of %d bytes says that it has %d", n, a.length)
		}
		k.mu.Lock()
		k.answers[a.unique] = append(k.answers[a.unique], fuse.Status(-a.errno))
		close(k.came)
		k.came = make(chan struct{})
		k.mu.Unlock()
	}
}

// send sends a request, which begins with an InHeader.
func send[T any](k *kernel, op uint32, node uint64, in *T) (unique uint64) {
	k.Helper()
	body := unsafe.Slice((*byte)(unsafe.Pointer(in)), unsafe.Sizeof(*in))
	k.last += 2
	h := (*fuse.InHeader)(unsafe.Pointer(in))
	h.Length, h.Opcode, h.Unique, h.NodeId = uint32(len(body)), op, k.last, node
	if _, err := k.file.Write(body); err != nil {
		k.Fatal(err)
	}
	return k.last
}

func (k *kernel) lock(node uint64, op uint32) uint64 { return send(k, op, node, &fuse.LkIn{Fh: node}) }
func (k *kernel) getattr(node uint64) uint64         { return send(k, 3, node, &fuse.GetAttrIn{}) }
func (k *kernel) signal(unique uint64) uint64 {
	return send(k, opInterrupt, 0, &fuse.InterruptIn{Unique: unique})
}
func (k *kernel) statfs() uint64 { return send(k, opStatfs, 1, &fuse.InHeader{}) }

// expect waits for the one answer to a request.
func (k *kernel) expect(unique uint64, want fuse.Status) {
	k.Helper()
	for timeout := time.After(20 * time.Second); ; {
		k.mu.Lock()
		got, came := k.answers[unique], k.came
		k.mu.Unlock()
		if len(got) > 0 {
			if len(got) > 1 || got[0] != want {
				k.Errorf("request %d: answered %v, want %v once", unique, got, want)
			}
			return
		}
		select {
		case <-came:
		case <-timeout:
			k.Fatalf("request %d has no answer", unique)
		}
	}
}

// unanswered checks that nothing was said to requests.
func (k *kernel) unanswered(uniques ...uint64) {
	k.Helper()
	k.expect(k.statfs(), fuse.ENOSYS) // all before it have been read
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, u := range uniques {
		if len(k.answers[u]) > 0 {
			k.Errorf("request %d: answered %v", u, k.answers[u])
		}
	}
}

// TestWaitsKeepNoThread: calls that are answered later by somebody else are in nobody's way, however many.
func TestWaitsKeepNoThread(t *testing.T) {
	calls := make(chan *Call, 10000)
	k := connect(t, func(c *Call, in *fuse.LkIn, wait bool) {
		if !wait {
			c.Answer(fuse.EAGAIN)
			return
		}
		calls <- c
	}, nil)
	var waits []uint64
	for range cap(calls) {
		waits = append(waits, k.lock(1, opSetlkw))
	}
	k.expect(k.lock(1, opSetlk), fuse.EAGAIN)
	k.unanswered(waits...)
	if n := k.conn.readers.Load(); n != 1 {
		t.Errorf("%d threads read", n)
	}
	for _, u := range waits {
		c := <-calls
		if c.in.Unique != u {
			t.Fatalf("call %d came as %d", u, c.in.Unique)
		}
		go func() {
			c.Answer(fuse.OK)
			c.Answer(fuse.EIO) // is not heard
		}()
	}
	for _, u := range waits {
		k.expect(u, fuse.OK)
	}
}

// TestOthersReadOn: what takes its time keeps nobody waiting, be it a lock call, be it another request.
func TestOthersReadOn(t *testing.T) {
	gate := make(chan struct{})
	k := connect(t, func(c *Call, in *fuse.LkIn, wait bool) {
		if wait {
			c.MayWait()
			c.MayWait() // once is enough
			<-gate
			if in.Fh != 1 {
				t.Errorf("the call is another one's by now: %d", in.Fh)
			}
		}
		c.Answer(fuse.OK)
	}, map[uint64]chan struct{}{7: gate})
	var slow []uint64
	for range 3 * mostReaders {
		slow = append(slow, k.lock(1, opSetlkw), k.getattr(7))
	}
	for range 100 {
		k.expect(k.lock(2, opSetlk), fuse.OK)
		k.expect(k.getattr(2), fuse.OK)
	}
	k.unanswered(slow...)
	close(gate)
	for _, u := range slow {
		k.expect(u, fuse.OK)
	}
	for deadline := time.Now().Add(10 * time.Second); k.conn.readers.Load() != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads read, and one is enough", k.conn.readers.Load())
		}
		k.expect(k.lock(2, opSetlk), fuse.OK)
	}
}

// TestInterrupt: a call is told of a signal once, if it wants to know, and not when it has been answered; else the kernel is to say it again.
func TestInterrupt(t *testing.T) {
	calls := make(chan *Call, 1)
	k := connect(t, func(c *Call, in *fuse.LkIn, wait bool) { calls <- c }, nil)
	told := make(chan struct{}, 10)
	first := k.lock(1, opSetlkw)
	c := <-calls
	k.expect(k.signal(first), fuse.EAGAIN)
	c.OnInterrupt(func() { told <- struct{}{} })
	once := k.signal(first)
	<-told
	k.unanswered(once)
	c.Answer(fuse.Status(syscall.EINTR))
	k.expect(first, fuse.Status(syscall.EINTR))
	k.expect(k.signal(first), fuse.EAGAIN)

	second := k.lock(1, opSetlkw)
	c = <-calls
	c.Answer(fuse.OK)
	c.OnInterrupt(func() { t.Error("told of a signal when it had been answered") })
	k.expect(second, fuse.OK)
	k.expect(k.signal(second), fuse.EAGAIN)
	if len(k.conn.waiting)+len(told) > 0 {
		t.Errorf("%d calls, %d signals left", len(k.conn.waiting), len(told))
	}
}

// TestPending: what nobody has read yet is known to be there, and what has been read is not.
func TestPending(t *testing.T) {
	entered, gate := make(chan struct{}), make(chan struct{})
	k := connect(t, func(c *Call, in *fuse.LkIn, wait bool) {
		if wait { // without MayWait, so that nobody reads on
			close(entered)
			<-gate
		}
		c.Answer(fuse.OK)
	}, nil)
	first := k.lock(1, opSetlkw)
	<-entered
	if k.conn.Pending() {
		t.Error("a request that is being served is pending")
	}
	second := k.lock(1, opSetlk)
	if !k.conn.Pending() {
		t.Error("a request that nobody has read is not")
	}
	close(gate)
	k.expect(first, fuse.OK)
	k.expect(second, fuse.OK)
	if k.conn.Pending() {
		t.Error("a request that has been answered is pending")
	}
}

// TestPanic: a bug costs the call that found it, and nothing else.
func TestPanic(t *testing.T) {
	k := connect(t, func(c *Call, in *fuse.LkIn, wait bool) {
		if wait {
			c.MayWait()
		}
		panic("bug")
	}, nil)
	k.expect(k.lock(1, opSetlk), fuse.EIO)
	k.expect(k.lock(1, opSetlkw), fuse.EIO)
	k.expect(k.getattr(1), fuse.OK)
}

// TestNoRequest: a lock call that is too short is refused.
func TestNoRequest(t *testing.T) {
	k := connect(t, func(c *Call, in *fuse.LkIn, wait bool) { t.Error("served") }, nil)
	k.expect(send(k, opSetlkw, 1, &fuse.InHeader{}), fuse.EIO)
}

// TestEveryRequestIsAnsweredOnce: whatever is served how, each request has its own answer, once.
func TestEveryRequestIsAnsweredOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	later := func(c *Call, status fuse.Status) {
		wg.Go(func() {
			time.Sleep(rand.N(2 * time.Millisecond))
			c.Answer(status)
		})
	}
	k := connect(t, func(c *Call, in *fuse.LkIn, _ bool) {
		status := fuse.Status(in.Fh % 100)
		switch in.Fh / 100 % 4 {
		case 0:
			c.Answer(status)
		case 1:
			c.MayWait()
			time.Sleep(rand.N(time.Millisecond))
			c.Answer(status)
		case 2:
			later(c, status)
		case 3: // a signal ends it, or not
			c.OnInterrupt(func() { c.Answer(status) })
			later(c, status)
		}
	}, nil)
	r := rand.New(rand.NewPCG(seed, 1))
	want := map[uint64]fuse.Status{}
	for range 5000 {
		var u uint64
		switch r.IntN(4) {
		case 0:
			want[k.getattr(1)] = fuse.OK
		case 1:
			want[k.statfs()] = fuse.ENOSYS
		default:
			fh := r.Uint64N(400)
			u = k.lock(fh, []uint32{opSetlk, opSetlkw}[r.IntN(2)])
			want[u] = fuse.Status(fh % 100)
		}
		if u != 0 && r.IntN(3) == 0 {
			k.signal(u)
		}
	}
	for u, status := range want {
		k.expect(u, status)
	}
	wg.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	for u := range want {
		if len(k.answers[u]) != 1 {
			t.Errorf("request %d: answered %v", u, fmt.Sprint(k.answers[u]))
		}
	}
	k.conn.mu.Lock()
	defer k.conn.mu.Unlock()
	if n := len(k.conn.waiting); n > 0 {
		t.Errorf("%d calls are remembered", n)
	}
}
