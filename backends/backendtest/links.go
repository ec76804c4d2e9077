package backendtest

import (
	"errors"
	"slices"
	"sync"

	"lockfs/backends"
)

var linkTests = []test{
	{"hard links", testLinks},
	{"dotlock race", testLinkRace},
	{"rename", testRename},
	{"rename over", testRenameOver},
	{"rename without replacing", testRenameNoReplace},
	{"rename directories", testRenameDirectories},
	{"rename race", testRenameRace},
}

func testLinks(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	e.create(a, "d", directory|0o755)
	f := e.create(a, "f", regular|0o644)
	linked, err := a.Link(e.ctx(), "f", "d/g")
	e.must(err)
	if linked.Ino != f.Ino || linked.Nlink != 2 {
		e.Fatalf("Link returned %+v, the file was inode %d", linked, f.Ino)
	}
	for _, name := range []string{"f", "d/g"} {
		if got := e.stat(b, name); got.Ino != f.Ino || got.Nlink != 2 {
			e.Fatalf("%q is %+v, want inode %d with two names", name, got, f.Ino)
		}
	}
	_, err = b.Write(e.ctx(), f.Ino, 0, []byte("shared"), moment(4))
	e.must(err)
	_, err = a.Link(e.ctx(), "f", "d/g")
	e.want(err, backends.ErrExist)
	_, err = a.Link(e.ctx(), "f", "d")
	e.want(err, backends.ErrExist)
	_, err = a.Link(e.ctx(), "d", "e")
	e.want(err, backends.ErrIsDir)
	e.must(b.Remove(e.ctx(), "f", false))
	left := e.stat(a, "d/g")
	if left.Ino != f.Ino || left.Nlink != 1 || left.Size != 6 {
		e.Fatalf("after an unlink of one name the other is %+v", left)
	}
	e.holds(a, f.Ino, []byte("shared"))
	e.must(a.Remove(e.ctx(), "d/g", false))
	_, err = b.StatInode(e.ctx(), f.Ino)
	e.want(err, backends.ErrNotExist)
	s := e.create(a, "s", symlink|0o777)
	again, err := b.Link(e.ctx(), "s", "t") // a symbolic link has names like any file
	e.must(err)
	if again.Ino != s.Ino || again.Nlink != 2 {
		e.Fatalf("a second name of a symbolic link is %+v", again)
	}
}

// testLinkRace is how dotlock programs lock: exactly one link succeeds.
func testLinkRace(e *env) {
	nodes := []Node{e.Node(e.T), e.Node(e.T), e.Node(e.T)}
	const each = 9
	own := make([]backends.Info, each)
	for i := range own {
		own[i] = e.create(nodes[i%3], nameOf(i), regular|0o444)
	}
	for range 10 {
		var mu sync.Mutex
		var won []int
		var all sync.WaitGroup
		for i := range each {
			all.Go(func() {
				_, err := nodes[i%3].Link(e.ctx(), nameOf(i), "lock")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, i)
				} else if !errors.Is(err, backends.ErrExist) {
					e.Errorf("Link: %v", err)
				}
			})
		}
		all.Wait()
		if len(won) != 1 {
			e.Fatalf("%d of %d links succeeded", len(won), each)
		}
		for i := range each {
			want := uint32(1)
			if i == won[0] {
				want = 2
			}
			if got := e.stat(nodes[(i+1)%3], nameOf(i)); got.Nlink != want || got.Ino != own[i].Ino {
				e.Fatalf("the file of number %d is %+v, want %d links; %d won", i, got, want, won[0])
			}
		}
		if got := e.stat(nodes[0], "lock"); got.Ino != own[won[0]].Ino {
			e.Fatalf("the lock is %+v, want inode %d", got, own[won[0]].Ino)
		}
		e.must(nodes[0].Remove(e.ctx(), "lock", false))
	}
}

func testRename(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	e.create(a, "d", directory|0o755)
	f := e.create(a, "f", regular|0o644)
	_, err := a.Write(e.ctx(), f.Ino, 0, []byte("moved"), moment(4))
	e.must(err)
	e.must(a.Rename(e.ctx(), "f", "d/g", false))
	e.missing(b, "f")
	if got := e.stat(b, "d/g"); got.Ino != f.Ino || got.Nlink != 1 || got.Size != 5 {
		e.Fatalf("the renamed file is %+v", got)
	}
	e.must(b.Rename(e.ctx(), "d/g", "d/g", false)) // onto itself: nothing happens
	if _, err := b.Link(e.ctx(), "d/g", "h"); err != nil {
		e.Fatal(err)
	}
	e.must(b.Rename(e.ctx(), "d/g", "h", false)) // two names of one inode: nothing happens
	if got := e.stat(a, "d/g"); got.Ino != f.Ino || got.Nlink != 2 {
		e.Fatalf("a rename between names of one inode left %+v", got)
	}
	e.want(b.Rename(e.ctx(), "no", "h", false), backends.ErrNotExist)
	e.want(b.Rename(e.ctx(), "h", "no/x", false), backends.ErrNotExist)
	e.want(b.Rename(e.ctx(), "h", "d/g/x", false), backends.ErrNotDir)
	e.holds(b, f.Ino, []byte("moved"))
}

func testRenameOver(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f, g := e.create(a, "f", regular|0o644), e.create(a, "g", regular|0o644)
	_, err := a.Link(e.ctx(), "g", "g2")
	e.must(err)
	e.create(a, "d", directory|0o755)
	e.create(a, "s", symlink|0o777)
	e.must(b.Rename(e.ctx(), "f", "g", false))
	e.missing(a, "f")
	if got := e.stat(a, "g"); got.Ino != f.Ino || got.Nlink != 1 {
		e.Fatalf("the name renamed over is %+v, want inode %d", got, f.Ino)
	}
	if got := e.stat(a, "g2"); got.Ino != g.Ino || got.Nlink != 1 {
		e.Fatalf("the replaced file's other name is %+v, want inode %d with one name", got, g.Ino)
	}
	e.must(b.Rename(e.ctx(), "g", "g2", false))
	_, err = a.StatInode(e.ctx(), g.Ino)
	e.want(err, backends.ErrNotExist)
	e.must(b.Rename(e.ctx(), "s", "g2", false))
	_, err = a.StatInode(e.ctx(), f.Ino)
	e.want(err, backends.ErrNotExist)
	e.want(b.Rename(e.ctx(), "g2", "d", false), backends.ErrIsDir)
	e.want(b.Rename(e.ctx(), "d", "g2", false), backends.ErrNotDir)
	if got := e.list(a, ""); !slices.Equal(got, []string{"d", "g2"}) {
		e.Fatalf("left are %q", got)
	}
}

func testRenameNoReplace(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f, g := e.create(a, "f", regular|0o644), e.create(a, "g", regular|0o644)
	e.want(b.Rename(e.ctx(), "f", "g", true), backends.ErrExist)
	e.want(b.Rename(e.ctx(), "f", "f", true), backends.ErrExist)
	if got := e.stat(a, "g"); got.Ino != g.Ino {
		e.Fatalf("a refused rename replaced the file: %+v", got)
	}
	e.must(b.Rename(e.ctx(), "f", "h", true))
	if got := e.stat(a, "h"); got.Ino != f.Ino {
		e.Fatalf("the renamed file is %+v", got)
	}
	e.missing(a, "f")
}

func testRenameDirectories(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	d := e.create(a, "d", directory|0o700)
	e.create(a, "full", directory|0o755)
	e.create(a, "full/x", regular|0o644)
	e.create(a, "empty", directory|0o755)
	e.want(b.Rename(e.ctx(), "full", "new", false), backends.ErrCrossDevice)
	e.stat(a, "full/x")
	e.want(b.Rename(e.ctx(), "d", "full", false), backends.ErrNotEmpty)
	e.must(b.Rename(e.ctx(), "d", "empty", false))
	if got := e.stat(a, "empty"); got.Ino != d.Ino || got.Mode != directory|0o700 || got.Nlink != 2 {
		e.Fatalf("the renamed directory is %+v, want inode %d", got, d.Ino)
	}
	e.missing(a, "d")
	e.must(b.Rename(e.ctx(), "empty", "full/sub", false))
	e.create(a, "full/sub/y", regular|0o644)
	if got := e.list(b, "full/sub"); !slices.Equal(got, []string{"y"}) {
		e.Fatalf("the moved directory lists %q", got)
	}
	if err := b.Rename(e.ctx(), "full/sub", "full/sub/z", false); err == nil {
		e.Fatal("a directory was moved into itself")
	}
	e.stat(a, "full/sub/y")
	e.must(b.Remove(e.ctx(), "full/sub/y", false))
	if err := b.Rename(e.ctx(), "full/sub", "full/sub/z", false); err == nil {
		e.Fatal("an empty directory was moved into itself")
	}
	e.stat(a, "full/sub")
}

// testRenameRace: of many who rename one file away, one succeeds.
func testRenameRace(e *env) {
	nodes := []Node{e.Node(e.T), e.Node(e.T)}
	for range 20 {
		e.create(nodes[0], "from", regular|0o644)
		var mu sync.Mutex
		won := 0
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				err := nodes[i%2].Rename(e.ctx(), "from", nameOf(i), false)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, backends.ErrNotExist) {
					e.Errorf("Rename: %v", err)
				}
			})
		}
		all.Wait()
		if won != 1 {
			e.Fatalf("%d of 6 renames of one name succeeded", won)
		}
		for _, name := range e.list(nodes[1], "") {
			e.must(nodes[0].Remove(e.ctx(), name, false))
		}
	}
}
