package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// The storms: many at once on both nodes, here from goroutines; what they call does not wait.

// storm calls f by several callers on each node at once, for each of so many names.
func storm(e *env, names int, f func(caller int, path string)) {
	const callers = 4
	for i := range names {
		start := make(chan struct{})
		var all sync.WaitGroup
		for caller := range callers {
			all.Go(func() {
				<-start
				f(caller, e.on(caller%len(e.nodes), fmt.Sprint("n", i)))
			})
		}
		close(start)
		all.Wait()
	}
}

// oneWins holds a storm to exactly one success a name, and EEXIST for the rest.
func oneWins(t *testing.T, e *env, names int, f func(caller int, path string) error) {
	t.Helper()
	won := map[string]*atomic.Int32{}
	for i := range names {
		won[fmt.Sprint("n", i)] = &atomic.Int32{}
	}
	storm(e, names, func(caller int, path string) {
		switch err := f(caller, path); {
		case err == nil:
			won[filepath.Base(path)].Add(1)
		case !errors.Is(err, syscall.EEXIST):
			t.Errorf("caller %d: %v", caller, err)
		}
	})
	for name, n := range won {
		if n.Load() != 1 {
			t.Errorf("%s: %d won", name, n.Load())
		}
	}
}

func TestExclusiveCreateStorm(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		oneWins(t, e, 50, func(_ int, path string) error {
			f, err := os.OpenFile(path, rdwr|creat|excl, 0o644)
			if err == nil {
				err = f.Close()
			}
			return err
		})
	})
}

func TestMkdirStorm(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		oneWins(t, e, 50, func(_ int, path string) error { return os.Mkdir(path, 0o755) })
	})
}

func TestSymlinkStorm(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		oneWins(t, e, 50, func(caller int, path string) error { return os.Symlink(fmt.Sprint("by ", caller), path) })
	})
}

func TestLinkStorm(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		for caller := range 4 {
			must(t, os.WriteFile(e.on(caller%2, fmt.Sprint("own", caller)), nil, 0o644))
		}
		oneWins(t, e, 50, func(caller int, path string) error {
			return os.Link(filepath.Join(filepath.Dir(path), fmt.Sprint("own", caller)), path)
		})
	})
}

// 400 opens with O_CREAT alone: all succeed on the same file.
func TestCreateStorm(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		var inodes sync.Map
		storm(e, 100, func(caller int, path string) {
			f, err := os.OpenFile(path, rdonly|creat, 0o644)
			if err != nil {
				t.Errorf("caller %d: %v", caller, err)
				return
			}
			defer f.Close()
			info, err := f.Stat()
			must(t, err)
			ino := info.Sys().(*syscall.Stat_t).Ino
			if first, _ := inodes.LoadOrStore(filepath.Base(path), ino); first != ino {
				t.Errorf("%s is two files: inodes %d and %d", filepath.Base(path), first, ino)
			}
		})
	})
}

// The same for writing: each waits for the one before it, and none fails.
func TestCreateForWritingStorm(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		storm(e, 25, func(caller int, path string) {
			f, err := os.OpenFile(path, wronly|creat|appendTo, 0o644)
			if err != nil {
				t.Errorf("caller %d: %v", caller, err)
				return
			}
			_, err = f.WriteString("x")
			if err := errors.Join(err, f.Close()); err != nil {
				t.Errorf("caller %d: %v", caller, err)
			}
		})
		for i := range 25 {
			data, err := os.ReadFile(e.on(0, fmt.Sprint("n", i)))
			if string(data) != "xxxx" {
				t.Errorf("n%d holds %q (%v)", i, data, err)
			}
		}
	})
}

func stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return &st
}

// What dotlock programs do: a file of their own, linked to the lock's name; its link count says who won.
func TestLinkAsDotlock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		for i := range 2 {
			must(t, os.WriteFile(e.on(i, fmt.Sprint("own", i)), fmt.Append(nil, i), 0o644))
		}
		must(t, os.Link(e.on(0, "own0"), e.on(0, "lock")))
		want(t, "the second link", os.Link(e.on(1, "own1"), e.on(1, "lock")), syscall.EEXIST)
		own, lock := stat(t, e.on(0, "own0")), stat(t, e.on(0, "lock"))
		if own.Nlink != 2 || lock.Nlink != 2 || own.Ino != lock.Ino {
			t.Errorf("the winner sees %d and %d links, inodes %d and %d", own.Nlink, lock.Nlink, own.Ino, lock.Ino)
		}
		if st := stat(t, e.on(1, "own1")); st.Nlink != 1 {
			t.Errorf("the loser's file has %d links", st.Nlink)
		}
		eventually(t, "the other node sees the same file", func() bool {
			st := stat(t, e.on(1, "lock"))
			return st.Ino == lock.Ino && st.Nlink == 2
		})
		must(t, os.Remove(e.on(1, "own0")))
		must(t, os.Remove(e.on(0, "lock")))
		must(t, os.Link(e.on(1, "own1"), e.on(1, "lock")))
		if data, err := os.ReadFile(e.on(0, "lock")); string(data) != "1" {
			t.Errorf("the new holder's file reads %q (%v)", data, err)
		}
	})
}

// rename over a name replaces it in one step: a reader on the other node always finds one of the two.
func TestRenameOver(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		must(t, os.WriteFile(e.on(0, "lock"), []byte("0"), 0o644))
		stop := make(chan struct{})
		var reader sync.WaitGroup
		reads := 0
		reader.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// An open that meets the old file just as it goes may find it stale, as on NFS.
				data, err := os.ReadFile(e.on(1, "lock"))
				if err != nil && !errors.Is(err, syscall.ESTALE) || err == nil && len(data) != 1 {
					t.Errorf("between renames it reads %q (%v)", data, err)
					return
				}
				reads++
			}
		})
		for i := range 30 {
			own := e.on(0, "own")
			must(t, os.WriteFile(own, fmt.Append(nil, i%10), 0o644))
			before := stat(t, own).Ino
			must(t, os.Rename(own, e.on(0, "lock")))
			if after := stat(t, e.on(0, "lock")).Ino; after != before {
				t.Fatalf("rename changed the inode from %d to %d", before, after)
			}
		}
		close(stop)
		reader.Wait()
		t.Logf("%d reads meanwhile", reads)
		if _, err := os.Stat(e.on(0, "own")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old name is still there (%v)", err)
		}
	})
}

// A held name can't be moved away; another may be moved over it, and the lock stays.
func TestRenameAndLocks(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		a, b := e.client(t, 0), e.client(t, 1)
		x := a.open("x", wronly|creat)
		want(t, "moving a held name away, on its node", os.Rename(e.on(0, "x"), e.on(0, "y")), syscall.EBUSY)
		want(t, "moving a held name away, on the other", os.Rename(e.on(1, "x"), e.on(1, "y")), syscall.EBUSY)
		must(t, os.WriteFile(e.on(1, "own"), []byte("new"), 0o644))
		must(t, os.Rename(e.on(1, "own"), e.on(1, "x")))
		r := b.open("x", rdonly)
		if got := r.read(); got != "new" {
			t.Errorf("after a rename over a held name it reads %q", got)
		}
		want(t, "the lock stays", r.flock(sh|nb), eagain)
		x.close()
		eventually(t, "free after the holder's close", func() bool { return r.flock(ex|nb) == nil })
	})
}
