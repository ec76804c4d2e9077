package fs

import (
	"time"

	"lockfs/backends"
)

// attrs is what is remembered of a backends.Info, less the number and the target. There is one for each name in use, so it
// is a third as large. It is never changed, so that it can be shared.
type attrs struct {
	size                  int64
	atime, mtime, ctime   int64 // in ns
	mode, uid, gid, nlink uint32
}

func attrsOf(i backends.Info) attrs {
	return attrs{size: i.Size, atime: nanos(i.Atime), mtime: nanos(i.Mtime), ctime: nanos(i.Ctime),
		mode: i.Mode, uid: i.UID, gid: i.GID, nlink: i.Nlink}
}

func newAttrs(i backends.Info) *attrs {
	a := attrsOf(i)
	return &a
}

// nanos of no time are 0: they would not fit.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// info is what was remembered of this inode.
func (a *attrs) info(ino uint64) backends.Info {
	return backends.Info{Ino: ino, Size: a.size, Atime: time.Unix(0, a.atime), Mtime: time.Unix(0, a.mtime), Ctime: time.Unix(0, a.ctime),
		Mode: a.mode, UID: a.uid, GID: a.gid, Nlink: a.nlink}
}

// or returns a if that says the same as b (and is not nil), so that what is shared stays so.
func (a *attrs) or(b attrs) *attrs {
	if a != nil && *a == b {
		return a
	}
	news := b
	return &news
}
