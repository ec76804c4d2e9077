package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
	"lockfs/backends/record"
)

// Names are entries below the inode of their directory: the path of a name's
// znode is the inode's number and the last component, so moving a name is one
// transaction on two znodes. An inode number is never used twice, and what it
// is (file, directory) never changes; so a transaction that creates an entry
// fails exactly when the directory is gone, and one that deletes a directory's
// inode fails exactly when it is not empty.
//
// Every transaction that changes an inode checks its version, and one that
// moves or removes an entry changes or deletes the inode behind it. An entry
// that was removed and made anew is another inode's, so it can't be mistaken for the old one.

func (b *Backend) inode(ino uint64) string {
	return b.inodesDir() + "/" + strconv.FormatUint(ino, 16)
}

// entry is what an entry's znode holds: the inode, its type, and who wrote it last, by which an answer that
// was lost is found out.
type entry struct {
	path    string
	ino     uint64
	dir     bool
	op      string
	version int32
}

func (e entry) data() []byte {
	kind := "f"
	if e.dir {
		kind = "d"
	}
	return []byte(kind + " " + strconv.FormatUint(e.ino, 16) + " " + e.op)
}

func parseEntry(path string, data []byte, stat *zk.Stat) (entry, error) {
	f := strings.Split(string(data), " ")
	if len(f) == 3 && (f[0] == "f" || f[0] == "d") {
		if ino, err := strconv.ParseUint(f[1], 16, 64); err == nil {
			return entry{path: path, ino: ino, dir: f[0] == "d", op: f[2], version: stat.Version}, nil
		}
	}
	return entry{}, fmt.Errorf("znode %s: %w", path, backends.ErrForeign)
}

// newOp returns an id for an operation.
func newOp() string { return strconv.FormatUint(record.NewIno(), 16) }

// getEntry reads one entry: ErrNotExist where there is none.
func getEntry(c *zk.Conn, path string) (entry, error) {
	data, stat, err := c.Get(path)
	if errors.Is(err, zk.ErrNoNode) {
		return entry{}, backends.ErrNotExist
	}
	if err != nil {
		return entry{}, err
	}
	return parseEntry(path, data, stat)
}

// resolve walks to a name. The root is an entry without a path.
func (b *Backend) resolve(c *zk.Conn, name string) (entry, error) {
	at := entry{ino: backends.RootIno, dir: true}
	if name == "" {
		return at, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !at.dir {
			return entry{}, backends.ErrNotDir
		}
		var err error
		if at, err = getEntry(c, b.inode(at.ino)+"/"+escape(part)); err != nil {
			return entry{}, err
		}
	}
	return at, nil
}

// place returns the path that a name's entry has or would have. The parent has to be there.
func (b *Backend) place(c *zk.Conn, name string) (string, error) {
	dir, last := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, last = name[:i], name[i+1:]
	}
	parent, err := b.resolve(c, dir)
	if err != nil {
		return "", err
	}
	if !parent.dir {
		return "", backends.ErrNotDir
	}
	return b.inode(parent.ino) + "/" + escape(last), nil
}

// stored is an inode with its znode's state.
type stored struct {
	record.Inode
	version  int32
	children int32
}

// getInode reads an inode: ErrNotExist where it is gone.
func (b *Backend) getInode(c *zk.Conn, ino uint64) (stored, error) {
	data, stat, err := c.Get(b.inode(ino))
	if errors.Is(err, zk.ErrNoNode) {
		return stored{}, backends.ErrNotExist
	}
	if err != nil {
		return stored{}, err
	}
	in, err := record.Unmarshal(data)
	if err != nil {
		return stored{}, fmt.Errorf("znode %s: %w", b.inode(ino), err)
	}
	return stored{in, stat.Version, stat.NumChildren}, nil
}

func (b *Backend) setInode(in stored) *zk.SetDataRequest {
	return &zk.SetDataRequest{Path: b.inode(in.Ino), Data: record.Marshal(in.Inode), Version: in.version}
}

// errAgain: what an operation has read has changed before its transaction. It is to start afresh.
var errAgain = errors.New("changed meanwhile")

// transact runs a transaction that was built from what has been read.
func transact(c *zk.Conn, ops ...any) error {
	_, err := c.Multi(ops...)
	if errors.Is(err, zk.ErrBadVersion) || errors.Is(err, zk.ErrNoNode) || errors.Is(err, zk.ErrNodeExists) {
		return errAgain
	}
	return err
}

// op runs an operation against the cluster's present state: it syncs first, for a server may lag behind. attempt
// is repeated while it returns errAgain, and while the connection breaks: then lost is true, and an
// earlier attempt may have been carried out.
func (b *Backend) op(ctx context.Context, what, name string, attempt func(c *zk.Conn, lost bool) error) error {
	lost := false
	err := b.retry(ctx, func(c *zk.Conn) error {
		if _, err := c.Sync(b.inodesDir()); err != nil {
			return err
		}
		for {
			err := attempt(c, lost)
			if errors.Is(err, errAgain) && ctx.Err() == nil {
				continue
			}
			lost = lost || transient(err)
			return err
		}
	})
	if err != nil {
		return fmt.Errorf("%s %q: %w", what, name, err)
	}
	return nil
}

// outcome carries a result out of an operation whose goroutine may outlive it.
type outcome[T any] struct{ ch chan T }

func newOutcome[T any]() outcome[T] { return outcome[T]{make(chan T, 1)} }

func (o outcome[T]) set(v T) error {
	select {
	case o.ch <- v:
	default: // nobody took the one before, and nobody will
	}
	return nil
}

// get returns what was set, where the operation succeeded.
func (o outcome[T]) get(err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return <-o.ch, nil
}
