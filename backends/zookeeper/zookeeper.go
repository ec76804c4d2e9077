// Package zookeeper keeps locks and names in ZooKeeper (3.5 or later).
//
// The one idea: a lock is a directory of ephemeral sequential znodes, one for each
// claim or request, whose names say all there is to know. One getChildren shows the
// whole line, and who is granted is a pure function of it (see line), so nobody
// has to write a grant down: a release is one delete, and the next in line, who
// watches the znode in front of it, sees for itself that its turn has come.
//
//	<chroot>/lockfs/<cluster>/locks/<name>/<session>_<id>_<kind>_<lock>_…_<seq>
//	                         /sessions/<session>      the node's name
//	                         /inodes/<ino>            a record; of a directory, children:
//	                         /inodes/<ino>/<name>     an entry: type and number of its inode
//
// # Why a grant stays
//
// What others do can't take a grant back: newcomers come behind (the server numbers them), and
// who leaves only clears the way. There is one exception, a request that goes ahead of waiters
// because its owner keeps another claim that is in their way (Request.Held): were that claim to go, they would be
// first. So before such a grant is returned, its znode is replaced by one that says that it is granted
// (group.moveUp). So are claims that Change shrinks, in one transaction.
//
// So an old line does for a grant: a server that lags, or a leader that has been deposed and does not know it yet, shows
// who was there before. What it can't do for is a refusal; that is asked for again after a sync, which leaves the deposed
// leader alone: until it notices, a node that is connected to it may be told that a lock is held which has just come free.
//
// # Tokens
//
// A claim's token is the zxid of a transaction: its znode's creation, or a
// mark set on the znode and its directory when it was granted. Creation will do where the line is served
// in the order of creation. Where it is not (another range, an upgrade), whoever gets ahead of
// one who came before sets the mark, and so does whoever sees a mark younger than itself (the directory's
// mzxid). So tokens grow with every grant. zxids grow for ever, through
// elections too; only a server restored from an old backup would repeat them.
// A claim's Seq is its token, and an event's the zxid of the last change of the line.
//
// The server numbers a line's znodes with 31 bits, and begins anew when it has removed the directory (a container) some
// time after the line was empty. A line that is never empty long enough lasts for two thousand million requests.
//
// # Sessions
//
// Every backends.Session is a ZooKeeper session of its own. Its lease is renewed by a write to the session's own
// znode. A sync would not do: the leader answers it alone, also one that is cut off and does not know yet that the
// others have elected another. A write has a majority behind it, so a leader that is elected after it takes
// over a session that lives, and counts its time-out from then.
//
// That the leader knew the session does not say that it counts the time-out from this very request: followers pass
// on what they heard with the leader's next ping, half a tick later at most. One that dies before
// takes it along, and the time-out counts from the renewal before. So the lease is taken for three quarters of the
// time-out. Requests whose fate is unknown (a broken connection) are looked up by the claim's id
// after a sync, never repeated blindly; what may be left over of them is found by its session in the next round and removed.
package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"lockfs/backends"
	"lockfs/backends/record"
	"lockfs/config"
)

// Backend is a connection to a ZooKeeper ensemble.
type Backend struct {
	cfg  config.ZooKeeper
	root string
	acl  []zk.ACL
	log  *slog.Logger

	mu     sync.Mutex
	store  *link // of the names and contents; see current
	closed bool
	old    sync.WaitGroup // links being closed
}

var _ backends.Backend = (*Backend)(nil)

// Open connects to the ensemble, bounded by cfg.Timeout and ctx, and makes sure that it
// can be used. The caller closes the back end. log takes what nobody can be returned; nil discards.
//
// Errors: backends.ErrUnavailable, ErrRefused, ErrForeign.
func Open(ctx context.Context, cfg config.ZooKeeper, cluster string, log *slog.Logger) (*Backend, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	b := &Backend{cfg: cfg, root: cfg.Chroot + "/lockfs/" + escape(cluster), acl: zk.WorldACL(zk.PermAll), log: log}
	if cfg.Username != "" {
		b.acl = zk.AuthACL(zk.PermAll)
	}
	if err := b.open(ctx); err != nil {
		_ = b.Close()
		return nil, fmt.Errorf("opening %s: %w", b, err)
	}
	return b, nil
}

func (b *Backend) open(ctx context.Context) error {
	l, err := b.current()
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	if err := l.wait(limit); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return b.diagnose(ctx, l)
	}
	return b.prepare(ctx)
}

// prepare creates what every cluster has. Parents that other clusters may share are
// everybody's; what is the cluster's own belongs to its credentials.
func (b *Backend) prepare(ctx context.Context) error {
	path := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(b.cfg.Chroot+"/lockfs", "/"), "/") {
		path += "/" + part
		if err := b.ensure(ctx, path, nil, zk.WorldACL(zk.PermAll)); err != nil {
			return err
		}
	}
	for _, path := range []string{b.root, b.locksDir(), b.sessionsDir(), b.inodesDir()} {
		if err := b.ensure(ctx, path, nil, b.acl); err != nil {
			return err
		}
	}
	return b.ensure(ctx, b.inode(backends.RootIno), record.Marshal(record.Root()), b.acl)
}

// ensure creates a znode that may be there already, and checks that it can be read.
func (b *Backend) ensure(ctx context.Context, path string, data []byte, acl []zk.ACL) error {
	return b.retry(ctx, func(c *zk.Conn) error {
		_, _, err := c.Get(path)
		if errors.Is(err, zk.ErrNoNode) {
			_, err = c.Create(path, data, zk.FlagPersistent, acl)
		}
		if err == nil || errors.Is(err, zk.ErrNodeExists) {
			return nil
		}
		return fmt.Errorf("znode %s: %w", path, err)
	})
}

func (b *Backend) locksDir() string             { return b.root + "/locks" }
func (b *Backend) sessionsDir() string          { return b.root + "/sessions" }
func (b *Backend) inodesDir() string            { return b.root + "/inodes" }
func (b *Backend) lockDir(name string) string   { return b.locksDir() + "/" + escape(name) }
func (b *Backend) sessionNode(id string) string { return b.sessionsDir() + "/" + id }

// String names the ensemble and the place in it.
func (b *Backend) String() string {
	return fmt.Sprintf("zookeeper at %s, path %s", strings.Join(b.cfg.Hosts, ","), b.root)
}

// Local reports false: the locks are the cluster's.
func (b *Backend) Local() bool { return false }

// current returns the link for names and contents, a new one where the last can't be used any more:
// its session has expired, or the servers lost their data and refuse one who has seen more.
func (b *Backend) current() (*link, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("%w: it is closed", backends.ErrUnavailable)
	}
	if b.store != nil && !b.store.expired.Load() {
		return b.store, nil
	}
	b.retire()
	ttl := min(max(3*b.cfg.Timeout, 4*time.Second), 30*time.Second)
	l, err := newLink(b.cfg, ttl, ttl, b.log, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backends.ErrUnavailable, err)
	}
	b.store = l
	return l, nil
}

// retire closes the store's link in the background.
func (b *Backend) retire() {
	if l := b.store; l != nil {
		b.old.Go(l.close)
		b.store = nil
	}
}

// Close gives up the connection and ends what still goes on through it.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	b.retire()
	b.mu.Unlock()
	b.old.Wait()
	return nil
}

// retry makes requests until they are answered, at most for cfg.Timeout: then
// ErrUnavailable. f may be carried out more than once. When retry returns an error,
// f may still be running.
func (b *Backend) retry(ctx context.Context, f func(c *zk.Conn) error) error {
	limit, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	for {
		l, err := b.current()
		if err != nil {
			return err
		}
		err = l.call(limit, func() error { return f(l.conn) })
		switch {
		case ctx.Err() != nil && limit.Err() != nil:
			return context.Cause(ctx)
		case limit.Err() != nil:
			b.giveUp(l)
			return fmt.Errorf("%w: no answer within %v", backends.ErrUnavailable, b.cfg.Timeout)
		case err == nil || !transient(err):
			return kindedUnlessExpected(err)
		}
		pause(limit, 20*time.Millisecond)
	}
}

// kindedUnlessExpected leaves those errors alone that callers decide by.
func kindedUnlessExpected(err error) error {
	for _, expected := range []error{zk.ErrNoNode, zk.ErrNodeExists, zk.ErrBadVersion, zk.ErrNotEmpty} {
		if errors.Is(err, expected) {
			return err
		}
	}
	return kinded(err)
}

// giveUp has the store's link replaced if it has no session: a server that has lost its data
// refuses a client that has seen it, for ever.
func (b *Backend) giveUp(l *link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.store == l && !b.closed && l.conn.State() != zk.StateHasSession {
		b.retire()
	}
}

// diagnose says why no session could be had. ZooKeeper answers the four letters
// "ruok" even when it has no quorum, and others answer something else.
func (b *Backend) diagnose(ctx context.Context, l *link) error {
	last := l.lastFailure()
	if errors.Is(last, errForeign) {
		return fmt.Errorf("%w: what listens there %w; check host and port", backends.ErrForeign, errForeign)
	}
	for _, host := range b.cfg.Hosts {
		switch answer := b.ask(ctx, host); {
		case answer == "":
			continue
		case strings.HasPrefix(answer, "imok"), strings.HasPrefix(answer, "ruok is not executed"):
			return fmt.Errorf("%w: %s runs ZooKeeper but opens no session; is there a quorum? (%w)",
				backends.ErrUnavailable, host, errors.Join(last))
		default:
			return fmt.Errorf("%w: what listens at %s %w; check host and port", backends.ErrForeign, host, errForeign)
		}
	}
	if last == nil {
		last = errors.New("connected, but no answer")
	}
	return fmt.Errorf("%w: no session within %v: %w; check that a server runs there", backends.ErrUnavailable, b.cfg.Timeout, last)
}

// ask sends "ruok" and returns the beginning of the answer, if any comes.
func (b *Backend) ask(ctx context.Context, host string) string {
	limit := min(b.cfg.Timeout, time.Second)
	dialer := net.Dialer{Timeout: limit}
	c, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("ruok\r\n\r\n")); err != nil {
		return ""
	}
	answer := make([]byte, 64)
	n, _ := c.Read(answer)
	return string(answer[:n])
}
