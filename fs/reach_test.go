package fs

import (
	"context"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lockfs/backends"
	filebackend "lockfs/backends/file"
	"lockfs/config"
)

// shaky is a back end whose names are out of reach from time to time.
type shaky struct {
	backends.Backend
	down, noWrites atomic.Bool
}

func (s *shaky) Update(ctx context.Context, ino uint64, attr backends.Attr) (backends.Info, error) {
	if s.noWrites.Load() {
		return backends.Info{}, backends.ErrUnavailable
	}
	return s.Backend.Update(ctx, ino, attr)
}

func (s *shaky) Stat(ctx context.Context, name string) (backends.Info, error) {
	if s.down.Load() {
		return backends.Info{}, backends.ErrUnavailable
	}
	return s.Backend.Stat(ctx, name)
}

// onShaky is a file system on one.
func onShaky(t *testing.T) (*FileSystem, *shaky) {
	t.Helper()
	backend, err := filebackend.Open(t.Context(), config.File{Path: t.TempDir()}, "test", nil)
	must(t, err)
	s := &shaky{Backend: backend}
	f, err := New(t.Context(), Options{Backend: s, Config: &config.Config{Cluster: "test", Node: "node", SessionTTL: 5 * time.Second}})
	must(t, err)
	t.Cleanup(func() {
		must(t, f.Close(context.Background()))
		must(t, backend.Close())
	})
	return f, s
}

// inOpen starts a thread that stands in an open(2) for writing of a path, until the test ends.
func inOpen(t *testing.T, path string) (thread uint32) {
	t.Helper()
	must(t, unix.Mkfifo(path, 0o600))
	id, done := make(chan int, 1), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		id <- unix.Gettid()
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		for err == unix.EINTR {
			fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		}
		if err == nil {
			_ = unix.Close(fd)
		}
	}()
	t.Cleanup(func() {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		must(t, err)
		<-done
		must(t, unix.Close(fd))
	})
	thread = uint32(<-id)
	eventually(t, "a thread in open(2)", func() bool { _, ok := openingOf(thread); return ok })
	return thread
}

// TestOutOfReachAgain: the back end goes away once more just when the kernel, told to do so, looks again what is to be opened. The open waits, and
// is judged by what is there when the back end is back.
func TestOutOfReachAgain(t *testing.T) {
	const user = 1000
	for what, c := range map[string]struct {
		meanwhile func(t *testing.T, s backends.Store)
		want      fuse.Status
	}{
		"nothing happens": {func(*testing.T, backends.Store) {}, fuse.OK},
		"permission is taken": {func(t *testing.T, s backends.Store) {
			info, err := s.Stat(t.Context(), "x")
			must(t, err)
			mode := uint32(0o400)
			_, err = s.Update(t.Context(), info.Ino, backends.Attr{Mode: &mode})
			must(t, err)
		}, fuse.EACCES},
		"the name is removed": {func(t *testing.T, s backends.Store) { must(t, s.Remove(t.Context(), "x", false)) }, fuse.Status(syscall.ENOLCK)},
	} {
		t.Run(what, func(t *testing.T) {
			f, s := onShaky(t)
			_, err := s.Create(t.Context(), "x", backends.Info{Mode: syscall.S_IFREG | 0o600, UID: user})
			must(t, err)
			header := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID, Caller: fuse.Caller{Pid: inOpen(t, filepath.Join(t.TempDir(), "x")), Owner: fuse.Owner{Uid: user}}}

			look := func() uint64 {
				t.Helper()
				s.down.Store(true)
				var out fuse.EntryOut
				if status := f.Lookup(nil, &header, "x", &out); status != fuse.OK {
					t.Fatalf("the look-up while the back end is out of reach: %v", status)
				}
				return out.NodeId
			}
			open := func(node uint64) (fuse.Status, fuse.OpenOut) {
				t.Helper()
				in := &fuse.OpenIn{InHeader: header, Flags: syscall.O_WRONLY}
				in.NodeId = node
				var out fuse.OpenOut
				opened := make(chan fuse.Status, 1)
				go func() { opened <- f.Open(nil, in, &out) }()
				select {
				case status := <-opened:
					t.Fatalf("an open while the back end is out of reach: %v", status)
				case <-time.After(50 * time.Millisecond):
				}
				s.down.Store(false)
				return <-opened, out
			}
			if status, _ := open(look()); status != fuse.Status(syscall.ESTALE) {
				t.Fatalf("the first time: %v", status)
			}
			node := look()
			c.meanwhile(t, s.Backend)
			status, out := open(node)
			if status != c.want {
				t.Errorf("the second time: %v, want %v", status, c.want)
			}
			if status == fuse.OK {
				if !f.table.Held("x") {
					t.Error("opened for writing without the lock")
				}
				f.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
			}
			if f.table.Held("x") {
				t.Error("a lock is left behind")
			}
		})
	}
}

// TestTruncationOutOfReach: an open whose file can't be truncated, for the back end has gone, waits, and holds nothing meanwhile. A signal ends it.
func TestTruncationOutOfReach(t *testing.T) {
	f, s := onShaky(t)
	info, err := s.Create(t.Context(), "x", backends.Info{Mode: syscall.S_IFREG | 0o600})
	must(t, err)
	_, err = s.Write(t.Context(), info.Ino, 0, []byte("words"), time.Now())
	must(t, err)
	var entry fuse.EntryOut
	if status := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "x", &entry); status != fuse.OK {
		t.Fatal(status)
	}
	in := &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: entry.NodeId}, Flags: syscall.O_WRONLY | syscall.O_TRUNC}
	var out fuse.OpenOut
	start := func() (interrupt chan struct{}, opened chan fuse.Status) {
		interrupt, opened = make(chan struct{}), make(chan fuse.Status, 1)
		go func() { opened <- f.Open(interrupt, in, &out) }()
		eventually(t, "it holds nothing", func() bool { return f.reach.isOut() || !f.table.Held("x") })
		if len(opened) > 0 {
			t.Fatalf("it has returned: %v", <-opened)
		}
		return interrupt, opened
	}
	s.noWrites.Store(true)
	interrupt, opened := start()
	close(interrupt)
	if status := <-opened; status != fuse.EINTR || f.table.Held("x") {
		t.Errorf("a signal ends it with %v, lock held %v", status, f.table.Held("x"))
	}
	in.Flags |= syscall.O_NONBLOCK
	if status := f.Open(nil, in, &out); status != fuse.Status(syscall.ENOLCK) || f.table.Held("x") {
		t.Errorf("with O_NONBLOCK: %v, lock held %v", status, f.table.Held("x"))
	}
	in.Flags &^= syscall.O_NONBLOCK
	_, opened = start()
	s.noWrites.Store(false)
	if status := <-opened; status != fuse.OK || !f.table.Held("x") {
		t.Fatalf("when the back end is back: %v, lock held %v", status, f.table.Held("x"))
	}
	if info, err := s.StatInode(t.Context(), info.Ino); err != nil || info.Size != 0 {
		t.Errorf("truncated: %+v, %v", info, err)
	}
	f.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
}
