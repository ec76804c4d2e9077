package fs

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lockfs/backends"
	filebackend "lockfs/backends/file"
	"lockfs/config"
)

// asked counts how often a store is asked what something is, and how often of that by its name.
type asked struct {
	backends.Backend
	n, byName atomic.Int64
}

func (a *asked) Stat(ctx context.Context, name string) (backends.Info, error) {
	a.n.Add(1)
	a.byName.Add(1)
	return a.Backend.Stat(ctx, name)
}

func (a *asked) StatInode(ctx context.Context, ino uint64) (backends.Info, error) {
	a.n.Add(1)
	return a.Backend.StatInode(ctx, ino)
}

// bareFileSystem is a file system that is mounted nowhere: the test is the kernel.
func bareFileSystem(t *testing.T) (*FileSystem, *asked) {
	t.Helper()
	backend, err := filebackend.Open(t.Context(), config.File{Path: t.TempDir()}, "test", nil)
	must(t, err)
	a := &asked{Backend: backend}
	f, err := New(t.Context(), Options{Backend: a, Config: &config.Config{Cluster: "test", Node: "node", SessionTTL: 5 * time.Second}})
	must(t, err)
	t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, a
}

// kernel is a thread that makes the requests of a system call.
type kernel struct {
	t      *testing.T
	f      *FileSystem
	thread uint32
}

func (k kernel) header(node uint64) fuse.InHeader {
	return fuse.InHeader{NodeId: node, Caller: fuse.Caller{Pid: k.thread}}
}

func (k kernel) lookup(name string) uint64 {
	k.t.Helper()
	var out fuse.EntryOut
	in := k.header(fuse.FUSE_ROOT_ID)
	if status := k.f.Lookup(nil, &in, name, &out); status != fuse.OK {
		k.t.Fatalf("look up %q: %v", name, status)
	}
	return out.NodeId
}

func (k kernel) getattr(node uint64) fuse.Status {
	var out fuse.AttrOut
	return k.f.GetAttr(nil, &fuse.GetAttrIn{InHeader: k.header(node)}, &out)
}

// open opens, and closes again.
func (k kernel) open(node uint64, flags uint32) fuse.Status {
	var out fuse.OpenOut
	status := k.f.Open(nil, &fuse.OpenIn{InHeader: k.header(node), Flags: flags}, &out)
	if status == fuse.OK {
		k.f.Release(nil, &fuse.ReleaseIn{InHeader: k.header(node), Fh: out.Fh})
	}
	return status
}

func create(t *testing.T, f *FileSystem, name string) {
	t.Helper()
	_, err := f.store.Create(t.Context(), name, backends.Info{Mode: syscall.S_IFREG | 0o600})
	must(t, err)
}

// An open asks the store once, though the kernel asks for the attributes first; one for writing asks again when it has its lock.
func TestOpenAsksOnce(t *testing.T) {
	f, store := bareFileSystem(t)
	create(t, f, "x")
	k := kernel{t, f, 7}
	node := k.lookup("x")
	for _, c := range []struct {
		what         string
		flags        uint32
		thread       uint32 // that opens
		want, byName int64
	}{
		{"an open for reading", syscall.O_RDONLY, 7, 1, 1},
		{"an open for writing", syscall.O_WRONLY, 7, 2, 2},
		{"another one", syscall.O_WRONLY, 7, 2, 1},
		{"an open for reading after it", syscall.O_RDONLY, 7, 2, 1},
		{"an open by another thread", syscall.O_RDONLY, 8, 2, 2},
		{"an open from another pid namespace", syscall.O_RDONLY, 0, 2, 2},
	} {
		before, byName := store.n.Load(), store.byName.Load()
		if status := k.getattr(node); status != fuse.OK {
			t.Fatalf("%s: attributes: %v", c.what, status)
		}
		if status := (kernel{t, f, c.thread}).open(node, c.flags); status != fuse.OK {
			t.Fatalf("%s: %v", c.what, status)
		}
		if n, names := store.n.Load()-before, store.byName.Load()-byName; n != c.want || names != c.byName {
			t.Errorf("%s asks the store %d times, %d of them by name; not %d and %d", c.what, n, names, c.want, c.byName)
		}
		if c.thread != 7 {
			k.f.nodes.looks.take(7, nil, false) // what thread 7 left
		}
	}
	// Without a GETATTR of its own an open asks by itself: what was found is used once only.
	before := store.n.Load()
	if status := k.open(node, syscall.O_RDONLY); status != fuse.OK || store.n.Load() != before+1 {
		t.Errorf("an open without GETATTR: %v, asks %d times", status, store.n.Load()-before)
	}
}

// A file that is made is known: the GETATTR that follows asks nobody. The next open does.
func TestCreateAsksOnce(t *testing.T) {
	f, store := bareFileSystem(t)
	k := kernel{t, f, 7}
	var out fuse.CreateOut
	in := &fuse.CreateIn{InHeader: k.header(fuse.FUSE_ROOT_ID), Flags: syscall.O_RDONLY | syscall.O_CREAT, Mode: 0o600}
	if status := f.Create(nil, in, "x", &out); status != fuse.OK {
		t.Fatalf("create: %v", status)
	}
	t.Cleanup(func() { f.Release(nil, &fuse.ReleaseIn{InHeader: k.header(out.NodeId), Fh: out.Fh}) })
	before := store.n.Load()
	if status := k.getattr(out.NodeId); status != fuse.OK || store.n.Load() != before {
		t.Errorf("the GETATTR that follows: %v, asks %d times, not at all", status, store.n.Load()-before)
	}
	before = store.n.Load()
	if status := k.open(out.NodeId, syscall.O_RDONLY); status != fuse.OK || store.n.Load() != before+1 {
		t.Errorf("an open after that: %v, asks %d times, not once", status, store.n.Load()-before)
	}
	must(t, store.Remove(t.Context(), "x", false))
	if status := k.open(out.NodeId, syscall.O_RDONLY); status != fuse.Status(syscall.ESTALE) {
		t.Errorf("an open of what another node removed: %v", status)
	}
}

// What this mount removed or renamed since the look is not opened by it, nor is what another mount did before.
func TestOpenSeesRemovals(t *testing.T) {
	f, _ := bareFileSystem(t)
	k, other := kernel{t, f, 7}, kernel{t, f, 8}
	root := other.header(fuse.FUSE_ROOT_ID)
	removed := func(name string) {
		if status := f.Unlink(nil, &root, name); status != fuse.OK {
			t.Fatalf("unlink: %v", status)
		}
	}
	renamed := func(name string) {
		create(t, f, "new")
		if status := f.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "new", name); status != fuse.OK {
			t.Fatalf("rename: %v", status)
		}
	}
	elsewhere := func(name string) { must(t, f.store.Remove(t.Context(), name, false)) }
	for what, c := range map[string]struct {
		change func(string)
		before bool // the GETATTR
	}{
		"removed here after it": {removed, false}, "replaced here after it": {renamed, false},
		"removed here before it": {removed, true}, "replaced here before it": {renamed, true}, "removed elsewhere before it": {elsewhere, true},
	} {
		create(t, f, "x")
		node := k.lookup("x")
		if c.before {
			c.change("x")
		}
		if status := k.getattr(node); status != fuse.OK {
			t.Fatalf("%s: attributes: %v", what, status)
		}
		if !c.before {
			c.change("x")
		}
		if status := k.open(node, syscall.O_RDONLY); status != fuse.Status(syscall.ESTALE) {
			t.Errorf("%s: the open gets %v, not ESTALE, at which the kernel looks again", what, status)
		}
		f.takeRetry(7, "x")
		_ = f.store.Remove(t.Context(), "x", false) // it may be gone
	}
}

func TestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l looks
		a, b := &node{id: 2}, &node{id: 3}
		found := func(thread uint32, n *node) bool { _, ok := l.take(thread, n, false); return ok }
		l.leave(5, a, backends.Info{}, 0)
		if !found(5, a) || found(5, a) {
			t.Error("not taken once")
		}
		l.leave(5, a, backends.Info{}, 0)
		if found(5, b) {
			t.Error("taken for another node")
		}
		l.leave(5, a, backends.Info{}, 0)
		if found(5+uint32(len(l.last)), a) {
			t.Error("taken by another thread")
		}
		l.leave(5, a, backends.Info{}, 0)
		time.Sleep(lookFor + 1)
		if found(5, a) {
			t.Error("taken though it is old")
		}
		l.leave(5, a, backends.Info{}, 0)
		l.removals.Add(1)
		if found(5, a) {
			t.Error("taken after a removal")
		}
	})
}
