package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lockfs/backends"
)

var nameTests = []test{
	{"root", testRoot},
	{"create and stat", testCreate},
	{"every kind of error", testNameErrors},
	{"tricky names", testTrickyNames},
	{"deep and long", testDeepNames},
	{"list", testList},
	{"remove", testRemove},
	{"one of many creates", testCreateRace},
	{"mkdir and rmdir race with create", testRmdirRace},
}

// Types, as in stat(2).
const (
	regular   = 0o100000
	directory = 0o040000
	symlink   = 0o120000
)

func nameOf(i int) string { return fmt.Sprintf("name-%05d", i) }

// moment is a time that every engine can keep.
func moment(sec int64) time.Time { return time.Unix(1_700_000_000+sec, 123456789) }

func (e *env) create(b backends.Backend, name string, mode uint32) backends.Info {
	e.Helper()
	info, err := b.Create(e.ctx(), name, backends.Info{Mode: mode, UID: 7, GID: 8, Atime: moment(1), Mtime: moment(2), Ctime: moment(3)})
	e.must(err)
	return info
}

func (e *env) stat(b backends.Backend, name string) backends.Info {
	e.Helper()
	info, err := b.Stat(e.ctx(), name)
	if err != nil {
		e.Fatalf("Stat(%q): %v", name, err)
	}
	return info
}

func (e *env) missing(b backends.Backend, name string) {
	e.Helper()
	_, err := b.Stat(e.ctx(), name)
	e.want(err, backends.ErrNotExist)
}

// list returns the names in a directory, sorted.
func (e *env) list(b backends.Backend, dir string) []string {
	e.Helper()
	entries, err := b.List(e.ctx(), dir)
	e.must(err)
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name)
	}
	slices.Sort(names)
	return names
}

// equal compares two states of an inode, times by the moment they name.
func equal(a, b backends.Info) bool {
	sameTimes := a.Atime.Equal(b.Atime) && a.Mtime.Equal(b.Mtime) && a.Ctime.Equal(b.Ctime)
	a.Atime, a.Mtime, a.Ctime = b.Atime, b.Mtime, b.Ctime
	return sameTimes && a == b
}

func (e *env) sameInfo(what string, got, want backends.Info) {
	e.Helper()
	if !equal(got, want) {
		e.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func testRoot(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	root := e.stat(a, "")
	if root.Ino != backends.RootIno || root.Mode != directory|0o1777 || root.Nlink != 2 {
		e.Fatalf("the root is %+v", root)
	}
	byIno, err := a.StatInode(e.ctx(), backends.RootIno)
	e.must(err)
	e.sameInfo("the root by its inode", byIno, root)
	if names := e.list(a, ""); len(names) != 0 {
		e.Fatalf("a fresh root lists %q", names)
	}
	_, err = a.Create(e.ctx(), "", backends.Info{Mode: directory | 0o755})
	e.want(err, backends.ErrExist)
	mode, uid := uint32(0o755), uint32(42)
	changed, err := a.Update(e.ctx(), backends.RootIno, backends.Attr{Mode: &mode, UID: &uid, Ctime: moment(9)})
	e.must(err)
	if changed.Mode != directory|0o755 || changed.UID != 42 || !changed.Ctime.Equal(moment(9)) {
		e.Fatalf("Update of the root returned %+v", changed)
	}
	e.sameInfo("the root on another node", e.stat(b, ""), changed)
}

func testCreate(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	for name, mode := range map[string]uint32{"file": regular | 0o6640, "dir": directory | 0o1750, "link": symlink | 0o777} {
		given := backends.Info{Mode: mode, UID: 1000, GID: 4294967294, Atime: moment(1), Mtime: moment(2), Ctime: moment(3)}
		if name == "link" {
			given.Target = "../\xff anywhere/\n%"
		}
		made, err := a.Create(e.ctx(), name, given)
		e.must(err)
		want := given
		want.Ino, want.Nlink = made.Ino, 1
		if name == "dir" {
			want.Nlink = 2
		}
		want.Size = int64(len(given.Target))
		want.Size, made.Size = sizeOf(want, made)
		e.sameInfo("Create", made, want)
		if made.Ino <= backends.RootIno || made.Ino >= 1<<63 {
			e.Fatalf("inode number %d", made.Ino)
		}
		e.sameInfo("Stat on another node", e.stat(b, name), made)
		byIno, err := b.StatInode(e.ctx(), made.Ino)
		e.must(err)
		e.sameInfo("StatInode", byIno, made)
		_, err = b.Create(e.ctx(), name, given)
		e.want(err, backends.ErrExist)
	}
}

// sizeOf: the size of a directory is the engine's own business.
func sizeOf(want, made backends.Info) (int64, int64) {
	if want.IsDir() {
		return 0, 0
	}
	return want.Size, made.Size
}

func testNameErrors(e *env) {
	b := e.Node(e.T)
	e.create(b, "f", regular|0o644)
	e.create(b, "d", directory|0o755)
	e.create(b, "d/x", regular|0o644)
	e.create(b, "s", symlink|0o777)
	file := backends.Info{Mode: regular | 0o644}
	for _, row := range []struct {
		name string
		kind error
	}{{"no", backends.ErrNotExist}, {"no/x", backends.ErrNotExist}, {"d/no/x", backends.ErrNotExist},
		{"f/x", backends.ErrNotDir}, {"d/x/y", backends.ErrNotDir}, {"s/x", backends.ErrNotDir}} {
		_, err := b.Stat(e.ctx(), row.name)
		e.want(err, row.kind)
		_, err = b.List(e.ctx(), row.name)
		e.want(err, row.kind)
		e.want(b.Remove(e.ctx(), row.name, false), row.kind)
		e.want(b.Remove(e.ctx(), row.name, true), row.kind)
		e.want(b.Rename(e.ctx(), row.name, "to", false), row.kind)
		_, err = b.Link(e.ctx(), row.name, "to")
		e.want(err, row.kind)
		if strings.Contains(row.name, "/") {
			_, err = b.Create(e.ctx(), row.name, file)
			e.want(err, row.kind)
			e.want(b.Rename(e.ctx(), "f", row.name, false), row.kind)
			_, err = b.Link(e.ctx(), "f", row.name)
			e.want(err, row.kind)
		}
	}
	_, err := b.List(e.ctx(), "f")
	e.want(err, backends.ErrNotDir)
	if got := e.list(b, ""); !slices.Equal(got, []string{"d", "f", "s"}) {
		e.Fatalf("errors left a trace: %q", got)
	}
	_, err = b.StatInode(e.ctx(), 1<<61)
	e.want(err, backends.ErrNotExist)
	_, err = b.Read(e.ctx(), 1<<61, 0, 1)
	e.want(err, backends.ErrNotExist)
	_, err = b.Write(e.ctx(), 1<<61, 0, []byte("x"), moment(0))
	e.want(err, backends.ErrNotExist)
	_, err = b.Update(e.ctx(), 1<<61, backends.Attr{Ctime: moment(0)})
	e.want(err, backends.ErrNotExist)
}

func testTrickyNames(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	names := trickyNames()
	e.create(a, "dir", directory|0o755)
	for _, dir := range []string{"", "dir/"} {
		for i, n := range names {
			info := e.create(a, dir+n, regular|0o600)
			_, err := a.Write(e.ctx(), info.Ino, 0, []byte(fmt.Sprint(dir, i)), moment(5))
			e.must(err)
		}
	}
	for _, dir := range []string{"", "dir/"} {
		for i, n := range names {
			got, err := b.Read(e.ctx(), e.stat(b, dir+n).Ino, 0, 100)
			e.must(err)
			if string(got) != fmt.Sprint(dir, i) {
				e.Fatalf("%q has the contents of another name: %q", dir+n, got)
			}
		}
	}
	want := slices.Clone(names)
	slices.Sort(want)
	if got := e.list(b, "dir"); !slices.Equal(got, want) {
		e.Fatalf("List returned %q, want %q", got, want)
	}
	for i, n := range names {
		e.must(b.Remove(e.ctx(), "dir/"+n, false))
		e.missing(a, "dir/"+n)
		if i+1 < len(names) {
			e.stat(a, "dir/"+names[i+1])
		}
	}
	e.must(b.Remove(e.ctx(), "dir", true))
}

func testDeepNames(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	path := ""
	for i := range 4 {
		path += strings.Repeat(string(rune('a'+i)), 255)
		if i < 3 {
			e.create(a, path, directory|0o755)
			path += "/"
		}
	}
	e.create(a, path, regular|0o644) // 1,023 bytes
	e.stat(b, path)
	deep := ""
	for range 60 {
		deep += "\xff\xfe"
		e.create(a, deep, directory|0o755)
		deep += "/"
	}
	e.create(a, deep+"f", regular|0o644)
	e.stat(b, deep+"f")
	// What shares a prefix with a directory is not in it.
	e.create(a, "p", directory|0o755)
	e.create(a, "pp", regular|0o644)
	e.create(a, "p-q", directory|0o755)
	e.create(a, "p-q/x", regular|0o644)
	if got := e.list(b, "p"); len(got) != 0 {
		e.Fatalf("an empty directory lists %q", got)
	}
	e.must(b.Remove(e.ctx(), "p", true))
	e.stat(a, "p-q/x")
}

func testList(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	e.create(a, "many", directory|0o755)
	infos := map[string]backends.Info{}
	for i := range 500 {
		mode := uint32(regular | 0o644)
		if i%7 == 0 {
			mode = directory | 0o700
		}
		infos[nameOf(i)] = e.create(a, "many/"+nameOf(i), mode)
	}
	e.create(a, "many/"+nameOf(0)+"/inside", regular|0o644)
	entries, err := b.List(e.ctx(), "many")
	e.must(err)
	if len(entries) != len(infos) {
		e.Fatalf("List returned %d entries, want %d", len(entries), len(infos))
	}
	for _, entry := range entries {
		want, ok := infos[entry.Name]
		if !ok {
			e.Fatalf("List returned %q, twice or out of nowhere", entry.Name)
		}
		if !want.IsDir() {
			e.sameInfo("List's entry", entry.Info, want)
		} else if entry.Ino != want.Ino || entry.Mode != want.Mode {
			e.Fatalf("List's entry is %+v, want %+v", entry, want)
		}
		delete(infos, entry.Name)
	}
}

func testRemove(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f := e.create(a, "f", regular|0o644)
	e.create(a, "s", symlink|0o777)
	e.create(a, "d", directory|0o755)
	e.create(a, "d/x", regular|0o644)
	e.want(b.Remove(e.ctx(), "f", true), backends.ErrNotDir)
	e.want(b.Remove(e.ctx(), "s", true), backends.ErrNotDir)
	e.want(b.Remove(e.ctx(), "d", false), backends.ErrIsDir)
	e.want(b.Remove(e.ctx(), "d", true), backends.ErrNotEmpty)
	e.must(b.Remove(e.ctx(), "d/x", false))
	e.must(a.Remove(e.ctx(), "d", true))
	e.must(a.Remove(e.ctx(), "s", false))
	e.must(b.Remove(e.ctx(), "f", false))
	e.missing(a, "f")
	_, err := a.StatInode(e.ctx(), f.Ino)
	e.want(err, backends.ErrNotExist)
	e.want(a.Remove(e.ctx(), "f", false), backends.ErrNotExist)
	if got := e.list(b, ""); len(got) != 0 {
		e.Fatalf("left over: %q", got)
	}
	// A name made again is a new file.
	again := e.create(b, "f", regular|0o644)
	if again.Ino == f.Ino || again.Size != 0 {
		e.Fatalf("a file made again is %+v, the old one was inode %d", again, f.Ino)
	}
	e.create(b, "d", directory|0o755)
	if got := e.list(a, "d"); len(got) != 0 {
		e.Fatalf("a directory made again has %q", got)
	}
}

func testCreateRace(e *env) {
	nodes := []Node{e.Node(e.T), e.Node(e.T), e.Node(e.T)}
	for round := range 10 {
		name := nameOf(round)
		var mu sync.Mutex
		var won []backends.Info
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				mode := uint32(regular | 0o644)
				if i%4 == 0 {
					mode = directory | 0o755
				}
				info, err := nodes[i%3].Create(e.ctx(), name, backends.Info{Mode: mode})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, info)
				} else if !errors.Is(err, backends.ErrExist) {
					e.Errorf("Create: %v", err)
				}
			})
		}
		all.Wait()
		if len(won) != 1 {
			e.Fatalf("%d of 12 created %q", len(won), name)
		}
		if got := e.stat(nodes[round%3], name); got.Ino != won[0].Ino || got.Mode != won[0].Mode {
			e.Fatalf("the file is %+v, its creator got %+v", got, won[0])
		}
	}
}

// testRmdirRace: a directory is never removed with something in it.
func testRmdirRace(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	for range 60 {
		e.create(a, "d", directory|0o755)
		var created, removed error
		var both sync.WaitGroup
		both.Go(func() { _, created = a.Create(e.ctx(), "d/x", backends.Info{Mode: regular | 0o644}) })
		both.Go(func() { removed = b.Remove(e.ctx(), "d", true) })
		both.Wait()
		switch {
		case created == nil && errors.Is(removed, backends.ErrNotEmpty):
			e.must(a.Remove(e.ctx(), "d/x", false))
			e.must(a.Remove(e.ctx(), "d", true))
		case removed == nil && errors.Is(created, backends.ErrNotExist):
			e.missing(b, "d/x")
		default:
			e.Fatalf("create in it: %v; remove: %v", created, removed)
		}
	}
}

// contents reads a whole file.
func (e *env) contents(b backends.Backend, ino uint64) []byte {
	e.Helper()
	data, err := b.Read(e.ctx(), ino, 0, backends.MaxContent+1)
	e.must(err)
	return data
}

func (e *env) holds(b backends.Backend, ino uint64, want []byte) {
	e.Helper()
	if got := e.contents(b, ino); !bytes.Equal(got, want) {
		e.Fatalf("the file has %d bytes %.60q, want %d bytes %.60q", len(got), got, len(want), want)
	}
}
