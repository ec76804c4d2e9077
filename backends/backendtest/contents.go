package backendtest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"

	"lockfs/backends"
)

var contentTests = []test{
	{"write and read", testWrite},
	{"the greatest size", testMaxContent},
	{"append by many", testAppend},
	{"update", testUpdate},
	{"update of several at once", testUpdateSeveral},
	{"truncate", testTruncate},
}

func testWrite(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f := e.create(a, "f", regular|0o644)
	e.holds(b, f.Ino, nil)
	var binary []byte
	for i := range 256 {
		binary = append(binary, byte(i))
	}
	info, err := a.Write(e.ctx(), f.Ino, 0, binary, moment(10))
	e.must(err)
	if info.Size != 256 || !info.Mtime.Equal(moment(10)) || !info.Atime.Equal(f.Atime) || info.Mode != f.Mode || info.Ino != f.Ino {
		e.Fatalf("Write returned %+v", info)
	}
	e.sameInfo("Stat on another node", e.stat(b, "f"), info)
	e.holds(b, f.Ino, binary)
	info, err = b.Write(e.ctx(), f.Ino, 3, []byte("xyz"), moment(11)) // in the middle
	e.must(err)
	want := slices.Concat(binary[:3], []byte("xyz"), binary[6:])
	e.holds(a, f.Ino, want)
	if info.Size != 256 {
		e.Fatalf("a write in the middle returned %+v", info)
	}
	_, err = a.Write(e.ctx(), f.Ino, 300, []byte("end"), moment(12)) // beyond the end
	e.must(err)
	want = slices.Concat(want, make([]byte, 44), []byte("end"))
	e.holds(b, f.Ino, want)
	for _, row := range [][2]int64{{0, 0}, {0, 1}, {250, 50}, {299, 100}, {302, 1}, {303, 1}, {1000, 5}, {backends.MaxContent, 1}, {1 << 40, 1}} {
		got, err := b.Read(e.ctx(), f.Ino, row[0], int(row[1]))
		e.must(err)
		from := min(row[0], int64(len(want)))
		if expect := want[from:min(from+row[1], int64(len(want)))]; !bytes.Equal(got, expect) {
			e.Fatalf("Read(%d, %d) = %q, want %q", row[0], row[1], got, expect)
		}
	}
}

func testMaxContent(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f := e.create(a, "f", regular|0o644)
	full := bytes.Repeat([]byte("0123456789abcdef"), backends.MaxContent/16)
	info, err := a.Write(e.ctx(), f.Ino, 0, full, moment(1))
	e.must(err)
	if info.Size != backends.MaxContent {
		e.Fatalf("Write returned %+v", info)
	}
	e.holds(b, f.Ino, full)
	size := int64(backends.MaxContent + 1)
	for what, err := range map[string]error{
		"append":   second(b.Write(e.ctx(), f.Ino, backends.Append, []byte("x"), moment(2))),
		"at end":   second(b.Write(e.ctx(), f.Ino, backends.MaxContent, []byte("x"), moment(2))),
		"over":     second(b.Write(e.ctx(), f.Ino, backends.MaxContent-1, []byte("xx"), moment(2))),
		"far":      second(b.Write(e.ctx(), f.Ino, 1<<62, []byte("x"), moment(2))),
		"farthest": second(b.Write(e.ctx(), f.Ino, backends.MaxByte, []byte("x"), moment(2))),
		"grow":     second(b.Update(e.ctx(), f.Ino, backends.Attr{Size: &size})),
	} {
		e.Log(what)
		e.want(err, backends.ErrTooLarge)
	}
	e.sameInfo("after refused writes", e.stat(a, "f"), info)
	e.holds(a, f.Ino, full)
	g := e.create(a, "g", regular|0o644)
	_, err = a.Write(e.ctx(), g.Ino, backends.MaxContent-1, []byte("x"), moment(2)) // a file of one byte and a hole
	e.must(err)
	sparse := make([]byte, backends.MaxContent)
	sparse[backends.MaxContent-1] = 'x'
	e.holds(b, g.Ino, sparse)
}

func second(_ backends.Info, err error) error { return err }

func testAppend(e *env) {
	nodes := []Node{e.Node(e.T), e.Node(e.T), e.Node(e.T)}
	f := e.create(nodes[0], "log", regular|0o644)
	const writers, each = 9, 15
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				line := fmt.Sprintf("writer %d line %d\n", w, i)
				if _, err := nodes[w%3].Write(e.ctx(), f.Ino, backends.Append, []byte(line), moment(int64(i))); err != nil {
					e.Errorf("append: %v", err)
				}
			}
		})
	}
	all.Wait()
	lines := strings.Split(strings.TrimSuffix(string(e.contents(nodes[1], f.Ino)), "\n"), "\n")
	next := map[string]int{}
	for _, line := range lines {
		var w, i int
		if _, err := fmt.Sscanf(line, "writer %d line %d", &w, &i); err != nil {
			e.Fatalf("torn line %q: %v", line, err)
		}
		key := fmt.Sprint(w)
		if i != next[key] {
			e.Fatalf("writer %d: line %d where %d was to come", w, i, next[key])
		}
		next[key]++
	}
	if len(lines) != writers*each {
		e.Fatalf("%d lines, want %d", len(lines), writers*each)
	}
}

func testUpdate(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f := e.create(a, "f", regular|0o644)
	_, err := a.Write(e.ctx(), f.Ino, 0, []byte("contents"), moment(1))
	e.must(err)
	mode, uid, gid, size := uint32(0o4711), uint32(0), uint32(4294967294), int64(4)
	atime, mtime := moment(-100), moment(1_000_000)
	want := e.stat(a, "f")
	for what, change := range map[string]struct {
		attr  backends.Attr
		apply func()
	}{
		"mode":  {backends.Attr{Mode: &mode}, func() { want.Mode = regular | mode }},
		"uid":   {backends.Attr{UID: &uid}, func() { want.UID = uid }},
		"gid":   {backends.Attr{GID: &gid}, func() { want.GID = gid }},
		"size":  {backends.Attr{Size: &size}, func() { want.Size = size }},
		"atime": {backends.Attr{Atime: &atime}, func() { want.Atime = atime }},
		"mtime": {backends.Attr{Mtime: &mtime}, func() { want.Mtime = mtime }},
		"ctime": {backends.Attr{Ctime: moment(77)}, func() { want.Ctime = moment(77) }},
		"none":  {backends.Attr{}, func() {}},
	} {
		got, err := b.Update(e.ctx(), f.Ino, change.attr)
		e.must(err)
		change.apply()
		if what == "size" { // truncating may set the modification time as well
			want.Mtime = got.Mtime
		}
		e.sameInfo("Update of "+what, got, want)
		e.sameInfo("Stat after Update of "+what, e.stat(a, "f"), want)
	}
	e.holds(a, f.Ino, []byte("cont"))
	d := e.create(a, "d", directory|0o755)
	got, err := b.Update(e.ctx(), d.Ino, backends.Attr{Mode: &mode, UID: &uid, Ctime: moment(5)})
	e.must(err)
	if got.Mode != directory|mode || got.UID != uid || got.Nlink != 2 {
		e.Fatalf("Update of a directory returned %+v", got)
	}
	e.create(a, "d/x", regular|0o644) // still a directory
}

func testUpdateSeveral(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f := e.create(a, "f", regular|0o600)
	mode, uid, gid, size, atime, mtime := uint32(0o640), uint32(1), uint32(2), int64(10), moment(4), moment(5)
	got, err := a.Update(e.ctx(), f.Ino, backends.Attr{Mode: &mode, UID: &uid, GID: &gid, Size: &size, Atime: &atime, Mtime: &mtime, Ctime: moment(6)})
	e.must(err)
	want := backends.Info{Ino: f.Ino, Mode: regular | 0o640, UID: 1, GID: 2, Nlink: 1, Size: 10, Atime: atime, Mtime: mtime, Ctime: moment(6)}
	e.sameInfo("Update", got, want)
	e.sameInfo("Stat", e.stat(b, "f"), want)
	e.holds(b, f.Ino, make([]byte, 10))
}

func testTruncate(e *env) {
	a, b := e.Node(e.T), e.Node(e.T)
	f := e.create(a, "f", regular|0o644)
	_, err := a.Write(e.ctx(), f.Ino, 0, []byte("0123456789"), moment(1))
	e.must(err)
	for _, row := range []struct {
		size int64
		want string
	}{{10, "0123456789"}, {4, "0123"}, {8, "0123\x00\x00\x00\x00"}, {0, ""}, {2, "\x00\x00"}} {
		info, err := b.Update(e.ctx(), f.Ino, backends.Attr{Size: &row.size, Ctime: moment(2)})
		e.must(err)
		if info.Size != row.size {
			e.Fatalf("Update to size %d returned %+v", row.size, info)
		}
		e.holds(a, f.Ino, []byte(row.want))
	}
	size := int64(backends.MaxContent)
	_, err = b.Update(e.ctx(), f.Ino, backends.Attr{Size: &size})
	e.must(err)
	e.holds(a, f.Ino, make([]byte, backends.MaxContent))
}
