package file

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofrs/flock"

	"lockfs/backends"
	"lockfs/backends/queue"
	"lockfs/config"
)

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := newDir(t)
	if err := os.Chmod(open, 0o707); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		path, says string
		kind       error
	}{
		{file, "directory", backends.ErrForeign},
		{filepath.Join(file, "below"), "not a directory", backends.ErrForeign},
		{open, "everybody may write", backends.ErrRefused},
		{"/proc/nothing/here", "/proc", backends.ErrUnavailable},
	} {
		b, err := Open(t.Context(), config.File{Path: row.path}, "c", nil)
		if err == nil {
			_ = b.Close() // the test has failed
			t.Fatalf("Open(%s) succeeded", row.path)
		}
		if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), row.path) {
			t.Errorf("Open(%s): %v; want %q, the path and %q", row.path, err, row.kind, row.says)
		}
	}
}

func TestOpenCreates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "er")
	b := openBackend(t, dir)
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the directory was made with mode %04o", info.Mode().Perm())
	}
	if !b.Local() || !strings.Contains(b.String(), dir) {
		t.Errorf("Local %v, String %q", b.Local(), b.String())
	}
}

// TestClustersApart: two clusters in one directory share nothing, whatever they are called.
func TestClustersApart(t *testing.T) {
	dir := newDir(t)
	for _, cluster := range []string{"a", "A", "a/b", "../a", "..", ".", strings.Repeat("x", 300), "#" + hashed("A")} {
		b, err := Open(t.Context(), config.File{Path: dir}, cluster, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() }) // closed after its session
		if _, err := openSession(t, b).Acquire(bounded(t), "x", backends.Request{Lock: writeAll}); err != nil {
			t.Errorf("cluster %q: %v", cluster, err)
		}
	}
	files, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(files) != 1 {
		t.Errorf("something lies outside of the directory: %v, %v", files, err)
	}
}

// TestOtherBoots: what was locked before the machine went down is void, unless
// it was another machine that did not go down.
func TestOtherBoots(t *testing.T) {
	dir := newDir(t)
	root := filepath.Dir(filepath.Dir(areaOf(t, openBackend(t, dir)).locks))
	old := filepath.Join(root, "boot-of-yesterday")
	if err := errors.Join(os.MkdirAll(filepath.Join(old, "sessions"), 0o700), os.MkdirAll(filepath.Join(old, "locks"), 0o700)); err != nil {
		t.Fatal(err)
	}
	lock := flock.New(filepath.Join(old, "sessions", "SOMEBODY"))
	if err := lock.Lock(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), config.File{Path: dir}, "Test cluster/1", nil)
	if !errors.Is(err, backends.ErrForeign) || !strings.Contains(err.Error(), "another machine") {
		t.Errorf("with a session of another boot alive: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	openBackend(t, dir)
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what another boot locked is still there: %v", err)
	}
}

// TestDirectoryRemoved: a session whose directory is gone is over, before long
// by itself and at once when it is asked for something.
func TestDirectoryRemoved(t *testing.T) {
	for _, ask := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "locks")
		b := openBackend(t, dir)
		s := openSession(t, b)
		peer := openSession(t, openBackend(t, dir)) // of another node, which is asked for nothing
		c := acquire(t, s, "x")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		looking, stop := context.WithCancel(t.Context())
		var looks sync.WaitGroup
		looks.Go(func() { // programs go on opening files meanwhile
			for looking.Err() == nil {
				_, err := b.Create(looking, "d", backends.Info{Mode: 0o040755})
				if errors.Is(err, backends.ErrNotExist) {
					t.Errorf("a directory is made while nobody knows what is there: %v", err)
					return
				}
			}
		})
		if ask {
			_, err := s.Change(bounded(t), "x", []backends.Change{{ID: c.ID}})
			if !errors.Is(err, backends.ErrSessionOver) && !errors.Is(err, backends.ErrUnavailable) {
				t.Errorf("Change in a directory that is gone: %v", err)
			}
		}
		select {
		case <-s.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("the session does not notice that its directory is gone")
		}
		if s.Valid() || !errors.Is(s.Err(), backends.ErrSessionOver) {
			t.Errorf("valid %v, error %v", s.Valid(), s.Err())
		}
		if _, err := s.Acquire(bounded(t), "x", backends.Request{Lock: writeAll, Wait: true}); !errors.Is(err, backends.ErrSessionOver) {
			t.Errorf("Acquire: %v", err)
		}
		// The node goes on with a new session in a directory made anew.
		again := openSession(t, b)
		next := acquire(t, again, "x")
		stop()
		looks.Wait()
		if peer.Valid() {
			t.Error("locks are granted anew while a session of the old directory does not know that it is gone")
		}
		if next.Token <= c.Token {
			t.Errorf("token %d after %d", next.Token, c.Token)
		}
		if _, err := b.Create(bounded(t), "f", backends.Info{Mode: 0o100644}); err != nil {
			t.Error(err)
		}
		_, err := openSession(t, openBackend(t, dir)).Acquire(bounded(t), "x", backends.Request{Lock: writeAll})
		if !errors.Is(err, backends.ErrWouldBlock) {
			t.Errorf("another node in the new directory: %v", err)
		}
	}
}

// TestDirectoryReplaced: an old session can't change what a new directory says.
func TestDirectoryReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "locks")
	s := openSession(t, openBackend(t, dir))
	acquire(t, s, "x")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	acquire(t, openSession(t, openBackend(t, dir)), "x")
	if _, err := s.Acquire(bounded(t), "y", backends.Request{Lock: writeAll}); !errors.Is(err, backends.ErrSessionOver) {
		t.Errorf("a session of a directory that was moved away: %v", err)
	}
}

// TestForeignState: what lockfs did not write is refused with its path, and is no free lock.
func TestForeignState(t *testing.T) {
	b := openBackend(t, newDir(t))
	s := openSession(t, b)
	if err := os.WriteFile(areaOf(t, b).statePath("x"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Acquire(bounded(t), "x", backends.Request{Lock: writeAll, Wait: true})
	if !errors.Is(err, backends.ErrForeign) || !strings.Contains(err.Error(), areaOf(t, b).statePath("x")) {
		t.Errorf("Acquire: %v", err)
	}
}

// TestTokensGrow although the clock goes back.
func TestTokensGrow(t *testing.T) {
	b := openBackend(t, newDir(t))
	sh := areaOf(t, b).shardOf("x")
	future := []byte{0, 0, 0, 0, 0, 0, 0, 0x10} // 2^60 µs: the year 38502
	if _, err := areaOf(t, b).tokens.WriteAt(future, int64(8*sh.index)); err != nil {
		t.Fatal(err)
	}
	for want := uint64(1<<60 + 1); want < 1<<60+4; want++ {
		if got, err := areaOf(t, b).nextToken(sh); err != nil || got != want {
			t.Fatalf("token %d, %v; want %d", got, err, want)
		}
	}
	if got, err := areaOf(t, b).nextToken(areaOf(t, b).shardOf("another")); err != nil || got > 1<<60 {
		t.Errorf("another shard's token is %d, %v", got, err)
	}
}

// TestSlots: whatever sizes follow each other, the last state is read, and after a torn write the one before it.
func TestSlots(t *testing.T) {
	a := areaOf(t, openBackend(t, newDir(t)))
	sh := a.shardOf("x")
	state := func(n int) (st queue.State) {
		for i := range n {
			st = append(st, queue.Entry{ID: fmt.Sprint("AN-ID-AS-LONG-AS-THEY-ARE ", i), Session: "A-SESSION-AS-LONG-AS-THEY-ARE"})
		}
		return st
	}
	sizes := []int{1, 2, 3, 1, 25, 40, 60, 24, 1, 0, 1, 30, 0, 3, 2}
	for i, n := range sizes {
		_, was, err := a.readState("x")
		if err == nil {
			err = a.writeState(sh, "x", was, state(n))
		}
		if err != nil {
			t.Fatal(err)
		}
		st, now, err := a.readState("x")
		if err != nil || len(st) != n || n > 0 && !reflect.DeepEqual(st, state(n)) {
			t.Fatalf("step %d: wrote %d entries and read %d, %v", i, n, len(st), err)
		}
		if n == 0 || now.large || was.version == 0 {
			continue
		}
		data, err := os.ReadFile(a.statePath("x")) // tear the write that is done, at its start and end
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 20, 60} {
			torn := slices.Clone(data)
			torn[(1-now.slot)*slotSize+off] ^= 0xff
			_, st, _, err := latest(torn)
			if err != nil || len(st) != sizes[i-1] {
				t.Fatalf("step %d, torn at %d: read %d entries, %v; want the %d before", i, off, len(st), err, sizes[i-1])
			}
		}
	}
	if err := os.WriteFile(a.statePath("x"), nil, 0o600); err != nil { // its maker was killed
		t.Fatal(err)
	}
	if st, _, err := a.readState("x"); err != nil || len(st) != 0 {
		t.Errorf("an empty file is %v, %v", st, err)
	}
	if err := a.sweepStates(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.statePath("x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty file is not swept: %v", err)
	}
}

// TestJournal: a change that was cut short after any of its steps is whole for who comes next.
func TestJournal(t *testing.T) {
	for cut := range 4 {
		b := openBackend(t, newDir(t))
		f, err := b.Create(bounded(t), "f", backends.Info{Mode: 0o100644})
		if err != nil {
			t.Fatal(err)
		}
		_, in, err := b.get("f")
		if err != nil {
			t.Fatal(err)
		}
		in.Nlink = 2
		steps := []step{b.putInode(in), b.store.link(place{dir: backends.RootIno, component: "g"}, f.Ino)}
		data, err := json.Marshal(steps)
		if err != nil {
			t.Fatal(err)
		}
		if cut > 0 { // else it was killed before the journal was there
			if err := b.put(b.journalPath(), data); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range steps[:max(0, cut-1)] {
			if err := b.step(s); err != nil {
				t.Fatal(err)
			}
		}
		list, err := b.List(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		if want := min(cut, 1) + 1; len(list) != want || list[0].Nlink != uint32(want) {
			t.Errorf("cut after %d: %+v, want %d names", cut, list, want)
		}
		if b.unfinished() {
			t.Error("the journal is still there")
		}
	}
}

func BenchmarkAcquireChange(b *testing.B) {
	dir := b.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	back, err := Open(b.Context(), config.File{Path: dir}, "bench", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = back.Close() }()
	s, err := back.Open(b.Context(), backends.SessionOptions{TTL: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close(context.Background()) }()
	for b.Loop() {
		c, err := s.Acquire(b.Context(), "x", backends.Request{Lock: writeAll, Wait: true})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Change(b.Context(), "x", []backends.Change{{ID: c.ID}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandOver(b *testing.B) {
	dir := b.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	var sessions [2]backends.Session
	for i := range sessions {
		back, err := Open(b.Context(), config.File{Path: dir}, "bench", nil)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = back.Close() }()
		if sessions[i], err = back.Open(b.Context(), backends.SessionOptions{TTL: time.Second}); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = sessions[i].Close(context.Background()) }()
	}
	held, err := sessions[0].Acquire(b.Context(), "x", backends.Request{Lock: writeAll})
	for i := 0; b.Loop(); i++ {
		if err != nil {
			b.Fatal(err)
		}
		from, to := sessions[i%2], sessions[(i+1)%2]
		got := make(chan error, 1)
		queued := make(chan struct{})
		last := held
		go func() {
			var err error
			held, err = to.Acquire(b.Context(), "x", backends.Request{Lock: writeAll, Wait: true, Queued: func() { close(queued) }})
			got <- err
		}()
		<-queued
		if _, err := from.Change(b.Context(), "x", []backends.Change{{ID: last.ID}}); err != nil {
			b.Fatal(err)
		}
		err = <-got
	}
}

// TestDirectoryIsMadeAnewForTheImpatient: also those get it in the end who never wait for as long as it takes.
func TestDirectoryIsMadeAnewForTheImpatient(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "locks")
	synctest.Test(t, func(t *testing.T) {
		b := openBackend(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), noticeTime)
			a, err := b.here(ctx)
			cancel()
			if err == nil && a.present() {
				if took := time.Since(began); took <= noticeTime {
					t.Errorf("made anew after %v, when not all know yet", took)
				}
				return
			}
		}
		t.Error("never made anew")
	})
}

// TestDirectoryIsMadeAnewOnce: who needs it waits until old holders know, may go meanwhile, and keeps nobody from anything.
func TestDirectoryIsMadeAnewOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "locks")
	synctest.Test(t, func(t *testing.T) {
		b := openBackend(t, dir)
		old := areaOf(t, b)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		type result struct {
			a   *area
			err error
		}
		results := make(chan result, 3)
		here := func(ctx context.Context) {
			go func() {
				a, err := b.here(ctx)
				results <- result{a, err}
			}()
		}
		leaves, leave := context.WithCancel(t.Context())
		began := time.Now()
		here(leaves)
		here(t.Context())
		here(t.Context())
		synctest.Wait()
		if !b.mu.TryLock() {
			t.Fatal("it is waited for with a mutex held")
		}
		b.mu.Unlock()
		leave()
		if r := <-results; !errors.Is(r.err, context.Canceled) || time.Since(began) != 0 {
			t.Errorf("one who left: %v after %v", r.err, time.Since(began))
		}
		one, other := <-results, <-results
		if one.err != nil || other.err != nil || one.a != other.a || one.a == old || !one.a.present() {
			t.Errorf("made anew: %+v and %+v", one, other)
		}
		if took := time.Since(began); took <= noticeTime {
			t.Errorf("made anew after %v, when not all know yet", took)
		}
		// What fails can be tried again.
		names := filepath.Join(dir, diskName("Test cluster/1"), "names")
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Dir(names), 0o700), os.WriteFile(names, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.here(t.Context()); err == nil {
			t.Error("made anew where a file is in the way")
		}
		if err := os.Remove(names); err != nil {
			t.Fatal(err)
		}
		if a, err := b.here(t.Context()); err != nil || !a.present() {
			t.Errorf("made anew: %v", err)
		}
	})
}

// TestStoodStill: a session whose process stood still, and whose directory was removed meanwhile, is not valid for a moment when it goes on.
func TestStoodStill(t *testing.T) {
	b := openBackend(t, newDir(t))
	s := openSession(t, b)
	longAgo := int64(time.Since(began) - time.Hour)
	s.seen.Store(longAgo)
	if !s.Valid() || s.seen.Load() == longAgo {
		t.Errorf("valid %v, with its file last seen %v after the process began", s.Valid(), time.Duration(s.seen.Load()))
	}
	s.seen.Store(longAgo)
	if err := os.Remove(s.a.sessionPath(s.id)); err != nil {
		t.Fatal(err)
	}
	if s.Valid() {
		t.Error("valid, and peers can't see it")
	}
}
