package fs

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	filebackend "lockfs/backends/file"
	"lockfs/config"
)

// TestLateRelease: the kernel tells descriptions of OFD locks apart by where it has them, and the next one may be in the same place before the
// RELEASE of the one before is served. That must not take its lock away.
func TestLateRelease(t *testing.T) {
	backend, err := filebackend.Open(t.Context(), config.File{Path: t.TempDir()}, "test", nil)
	must(t, err)
	f, err := New(t.Context(), Options{Backend: backend, Config: &config.Config{Cluster: "test", Node: "node", SessionTTL: 5 * time.Second}})
	must(t, err)
	t.Cleanup(func() {
		must(t, f.Close(context.Background()))
		must(t, backend.Close())
	})
	open := func() uint64 {
		t.Helper()
		in := &fuse.CreateIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Mode: 0o600}
		var out fuse.CreateOut
		if status := f.Create(nil, in, "x", &out); status != fuse.OK {
			t.Fatalf("create: %v", status)
		}
		return out.Fh
	}
	lock := func(fh, owner uint64, typ uint32) fuse.Status {
		in := &fuse.LkIn{Fh: fh, Owner: owner}
		in.Lk = fuse.FileLock{End: 9, Typ: typ}
		call := make(testCall, 1)
		f.setLock(call, in, false)
		return <-call
	}
	const place, elsewhere, write, unlock = 0x1000, 0x2000, syscall.F_WRLCK, syscall.F_UNLCK
	first, second, other := open(), open(), open()
	for _, typ := range []uint32{write, unlock} {
		if status := lock(first, place, typ); status != fuse.OK {
			t.Fatalf("the first: %v", status)
		}
	}
	if status := lock(second, place, write); status != fuse.OK {
		t.Fatalf("the second: %v", status)
	}
	f.Release(nil, &fuse.ReleaseIn{Fh: first})
	if status := lock(other, elsewhere, write); status != fuse.EAGAIN {
		t.Errorf("another one gets what the second has, after the first's RELEASE: %v", status)
	}
	f.Release(nil, &fuse.ReleaseIn{Fh: second})
	if status := lock(other, elsewhere, write); status != fuse.OK {
		t.Errorf("after the second's RELEASE: %v", status)
	}
	f.Release(nil, &fuse.ReleaseIn{Fh: other})
}

// testCall is a lock call that nobody interrupts.
type testCall chan fuse.Status

func (testCall) MayWait()                    {}
func (testCall) OnInterrupt(func())          {}
func (c testCall) Answer(status fuse.Status) { c <- status }
