package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	"lockfs/fs/locks"
)

func TestErrno(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		nil:                     0,
		syscall.EXDEV:           syscall.EXDEV,
		context.Canceled:        syscall.EINTR,
		backends.ErrWouldBlock:  syscall.EAGAIN,
		backends.ErrYield:       syscall.EAGAIN,
		backends.ErrDeadlock:    syscall.EDEADLK,
		backends.ErrUnavailable: syscall.EIO,
		backends.ErrSessionOver: syscall.EIO,
		backends.ErrExist:       syscall.EEXIST,
		backends.ErrNotExist:    syscall.ENOENT,
		backends.ErrNotDir:      syscall.ENOTDIR,
		backends.ErrIsDir:       syscall.EISDIR,
		backends.ErrNotEmpty:    syscall.ENOTEMPTY,
		backends.ErrTooLarge:    syscall.EFBIG,
		backends.ErrNoSpace:     syscall.ENOSPC,
		backends.ErrCrossDevice: syscall.EXDEV,
		backends.ErrRefused:     syscall.EIO,
		backends.ErrForeign:     syscall.EIO,
		locks.ErrClosed:         syscall.ENOTCONN,
		locks.ErrLost:           syscall.EIO,
		errors.New("unknown"):   syscall.EIO,
	} {
		wrapped := err
		if err != nil {
			wrapped = fmt.Errorf("doing something: %w", err)
		}
		if got := errno(wrapped); got != want {
			t.Errorf("%v: %v, not %v", err, got, want)
		}
	}
	if got := errno(fmt.Errorf("%w: %w", backends.ErrUnavailable, syscall.ECONNRESET)); got != syscall.EIO {
		t.Errorf("the network's errno: %v", got)
	}
	if got := errno(lockErrno(fmt.Errorf("lock: %w", backends.ErrUnavailable))); got != syscall.ENOLCK {
		t.Errorf("a lock call while the back end is out of reach: %v", got)
	}
}

func info(ino uint64) backends.Info {
	return backends.Info{Ino: ino, Mode: syscall.S_IFREG | 0o600, Nlink: 1}
}

func TestNodes(t *testing.T) {
	n := newNodes()
	enter := func(name string, ino uint64, private bool) *node {
		return n.enter(name, ino, newAttrs(info(ino)), private)
	}
	a := enter("x", 10, false)
	if b := enter("x", 10, false); b != a || a.lookups != 2 {
		t.Errorf("looked up twice: %+v and %+v", a, b)
	}
	if b := enter("y", 10, false); b.id == a.id {
		t.Error("two hard links are one nodeid")
	}
	if b := enter("x", 11, false); b.id == a.id {
		t.Error("a replaced file has the nodeid of the old one")
	}
	p := enter("x", 10, true)
	if q := enter("x", 10, true); p.id == a.id || q.id == p.id || enter("x", 10, false) != a {
		t.Error("a private nodeid is not private")
	}
	n.rename("x", "z", 10)
	for _, c := range []struct {
		id   uint64
		want string
	}{{a.id, "z"}, {p.id, "z"}, {fuse.FUSE_ROOT_ID, ""}} {
		if _, name, err := n.find(c.id); err != nil || name != c.want {
			t.Errorf("node %d is %q (%v), not %q", c.id, name, err, c.want)
		}
	}
	if got := n.inodesOf("x"); !slices.Equal(got, []uint64{11}) {
		t.Errorf("under x: %v", got)
	}
	n.forget(a.id, 2)
	if _, _, err := n.find(a.id); err != nil {
		t.Error("forgotten too early")
	}
	n.forget(a.id, 1)
	if _, _, err := n.find(a.id); err != syscall.ESTALE {
		t.Errorf("not forgotten: %v", err)
	}
	c, d := enter("x", 12, false), enter("x", 13, false)
	n.forget(c.id, 1)
	if got := n.inodesOf("x"); !slices.Equal(got, []uint64{13, 11}) {
		t.Errorf("under x without the one in the middle: %v", got)
	}
	n.forget(d.id, 1)
	if got := n.inodesOf("x"); !slices.Equal(got, []uint64{11}) {
		t.Errorf("under x without the last one: %v", got)
	}
	n.forget(p.id, 1)
	n.forget(fuse.FUSE_ROOT_ID, 1<<40)
	if _, _, err := n.find(fuse.FUSE_ROOT_ID); err != nil {
		t.Error("the root was forgotten")
	}
	if b := enter("z", 10, false); b.id == a.id {
		t.Error("a nodeid was given twice")
	}
	if len(n.private) != 1 {
		t.Errorf("%d private nodes left", len(n.private))
	}
}

func TestPermits(t *testing.T) {
	self := uint32(os.Getpid())
	for _, c := range []struct {
		uid, gid, pid, mode, mask uint32
		want                      bool
	}{
		{0, 0, 0, 0o000, fuse.W_OK, true},
		{5, 9, 0, 0o200, fuse.W_OK, true},
		{5, 9, 0, 0o400, fuse.W_OK, false},
		{5, 7, 0, 0o066, fuse.W_OK, false}, // the owner's bits count, not the group's
		{6, 7, 0, 0o020, fuse.W_OK, true},
		{6, 7, 0, 0o602, fuse.W_OK, false},
		{6, 9, 0, 0o002, fuse.W_OK, true},
		{6, 9, 0, 0o664, fuse.W_OK, false},
		{6, 9, 0, 0o004, fuse.R_OK | fuse.W_OK, false},
		{6, 9, self, 0o006, fuse.R_OK | fuse.W_OK, true},
	} {
		in := &fuse.InHeader{Caller: fuse.Caller{Owner: fuse.Owner{Uid: c.uid, Gid: c.gid}, Pid: c.pid}}
		if got := permits(in, backends.Info{UID: 5, GID: 7, Mode: syscall.S_IFREG | c.mode}, c.mask); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestProcesses(t *testing.T) {
	self := uint32(os.Getpid())
	if got := processOf(self); got != self {
		t.Errorf("process of the main thread %d: %d", self, got)
	}
	if got := processOf(uint32(syscall.Gettid())); got != self {
		t.Errorf("process of a thread: %d, not %d", got, self)
	}
	if got := started(self); got < started(1) || started(1<<30) < got {
		t.Errorf("started at %d, init at %d", got, started(1))
	}
	f, err := os.Open(t.TempDir())
	must(t, err)
	defer f.Close()
	var st syscall.Stat_t
	must(t, syscall.Fstat(int(f.Fd()), &st))
	if opens, err := hasOpen(fmt.Sprint(self), []uint64{1, st.Ino}); !opens || err != nil {
		t.Errorf("this process has it open, says %v (%v)", opens, err)
	}
	if opens, err := hasOpen(fmt.Sprint(self), []uint64{1 << 62}); opens || err != nil {
		t.Errorf("nobody has it open, says %v (%v)", opens, err)
	}
	if opens, err := hasOpen(fmt.Sprint(1<<30), []uint64{st.Ino}); opens || err != nil {
		t.Errorf("a process that is gone: %v (%v)", opens, err)
	}
}

func TestInterruptEndsAWaitAfterAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		interrupt := make(chan struct{})
		ctx, stop := newCaller(interrupt)
		done := ctx.Done()
		close(interrupt)
		start := time.Now()
		if ctx.Err() != nil {
			t.Error("ended at once")
		}
		<-done
		if waited := time.Since(start); waited != unwatched+interruptGrace || ctx.Err() != context.Canceled {
			t.Errorf("ended after %v: %v", waited, ctx.Err())
		}
		stop()

		ctx, stop = newCaller(make(chan struct{}))
		done = ctx.Done()
		stop()
		<-done // it ends with the request
		_, stop = newCaller(make(chan struct{}))
		stop()
	})
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &FileSystem{retries: newRetries()}
		if err := f.lookAgain(7, retry{name: "x"}); err != syscall.ESTALE {
			t.Errorf("look again: %v", err)
		}
		if f.retries.expected(8, "x") != nil || f.retries.expected(7, "y") != nil || f.retries.expected(7, "x") == nil {
			t.Error("expects another")
		}
		if f.takeRetry(7, "x") == nil || f.takeRetry(7, "x") != nil {
			t.Error("not taken once")
		}
		f.lookAgain(7, retry{name: "x"})
		if f.takeRetry(7, "y") != nil || f.takeRetry(7, "x") != nil {
			t.Error("a thread that does something else has come back")
		}
		f.lookAgain(7, retry{name: "x"})
		f.lookAgain(0, retry{name: "x"})
		if f.retries.expected(0, "x") != nil {
			t.Error("a thread of another pid namespace is expected")
		}
		time.Sleep(retryFor + 1)
		synctest.Wait()
		if f.retries.expected(7, "x") == nil {
			t.Error("a thread that comes late would be told again")
		}
		time.Sleep(rememberFor)
		synctest.Wait()
		if len(f.retries.told) != 0 {
			t.Error("not forgotten")
		}
	})
}

func TestLockRequests(t *testing.T) {
	h := &handle{id: 3, name: "x", writable: true}
	for _, c := range []struct {
		in   fuse.LkIn
		want locks.Request
		err  error
	}{
		{fuse.LkIn{Owner: 9, LkFlags: fuse.LK_FLOCK, Lk: fuse.FileLock{End: 1<<63 - 1, Typ: syscall.F_WRLCK, Pid: 5}},
			locks.Request{Owner: locks.Owner{Kind: locks.Description, ID: 3}, Door: locks.Flock, Lock: wholeWrite}, nil},
		{fuse.LkIn{Owner: 9, Lk: fuse.FileLock{Start: 1, End: 1<<64 - 1, Typ: syscall.F_RDLCK, Pid: 5}},
			locks.Request{Owner: locks.Owner{Kind: locks.Process, ID: 9}, Door: locks.Fcntl,
				Lock: backends.Lock{Range: backends.Range{First: 1, Last: backends.MaxByte}, Mode: backends.Read}}, nil},
		{fuse.LkIn{Owner: 9, Lk: fuse.FileLock{Start: 1, End: 2, Typ: syscall.F_UNLCK, Pid: 5}},
			locks.Request{Owner: locks.Owner{Kind: locks.Process, ID: 9}, Door: locks.Fcntl,
				Lock: backends.Lock{Range: backends.Range{First: 1, Last: 2}}}, nil},
		{fuse.LkIn{Lk: fuse.FileLock{Start: 2, End: 1, Typ: syscall.F_RDLCK}}, locks.Request{}, syscall.EINVAL},
		{fuse.LkIn{Lk: fuse.FileLock{Typ: 77}}, locks.Request{}, syscall.EINVAL},
	} {
		got, err := h.request(&c.in)
		if err != c.err {
			t.Errorf("%+v: %v", c.in, err)
		}
		c.want.Name, c.want.Handle, c.want.Writable, c.want.PID = "x", 3, true, 5
		if err == nil && got != c.want {
			t.Errorf("%+v: %+v, not %+v", c.in, got, c.want)
		}
	}
}

func TestOpenFlags(t *testing.T) {
	for flags, want := range map[uint32]struct {
		writes bool
		yield  backends.Hint
		access uint32
	}{
		syscall.O_RDONLY:                    {false, backends.ByCallOnWritable, fuse.R_OK},
		syscall.O_WRONLY:                    {true, backends.ByCallOnWritable, fuse.W_OK},
		syscall.O_WRONLY | syscall.O_TRUNC:  {true, backends.ByCallOnWritable, fuse.W_OK},
		syscall.O_RDONLY | syscall.O_TRUNC:  {true, backends.ByCallOnWritable, fuse.R_OK | fuse.W_OK},
		syscall.O_RDWR:                      {true, backends.ByCall, fuse.R_OK | fuse.W_OK},
		syscall.O_WRONLY | syscall.O_APPEND: {true, backends.ByCall, fuse.W_OK},
	} {
		if writes(flags) != want.writes || yieldTo(flags) != want.yield || access(flags) != want.access {
			t.Errorf("%x: writes %v, yields to %v, needs %v", flags, writes(flags), yieldTo(flags), access(flags))
		}
	}
}
