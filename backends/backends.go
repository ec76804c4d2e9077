// Package backends is the contract between a node and the server that
// arbitrates between nodes: fcntl for nodes.
//
// A node opens one Session, its presence in the cluster. Through it the node
// holds claims: a claim is a mode on a byte range of a name. Claims of
// different sessions exclude each other as locks do; claims of one session
// never do, for the node's own lock table (package fs/locks) decides among
// the owners on one node. A claim that can't be had at once stands in the
// name's queue, which is served first come, first served; package queue says
// exactly who waits for whom.
//
// A session is a lease that the node renews. When it is over, its claims and
// its places in queues are gone, and the session knows it from its own clock
// before the server can give them to another.
//
// Names and small contents belong to the cluster too: see Store.
//
// The engines are in packages of their own below this one; package
// backends/all opens the first of a list that answers.
package backends

import (
	"context"
	"log/slog"
	"math"
	"os"
	"time"
)

// Backend is a connection to one server (or ensemble, or directory), for one
// cluster. It is safe for use by many goroutines.
type Backend interface {
	Store

	// Open starts a session. It returns when the server knows the session.
	// ctx bounds the opening only, not the session's life. The caller closes
	// the session.
	Open(ctx context.Context, options SessionOptions) (Session, error)

	// String names the back end for logs and errors, without any secret:
	// "redis at spock:8885, database 0".
	String() string

	// Local reports whether the locks end at this machine.
	Local() bool

	// Close gives up the connection. Sessions are to be closed before.
	Close() error
}

// SessionOptions say who opens a session.
type SessionOptions struct {
	// Node is the node's name, for people who look into the server. It need
	// not be unique: the back end adds what makes the session's ID unique.
	Node string
	// TTL is the lease: so long after the last renewal the server may give
	// what the session held to others.
	TTL time.Duration
	// LockDelay is how long what the session held stays closed to others when it
	// ends without a goodbye, after its lease: for what knows no fencing tokens and may
	// still get the dead holder's late writes. Its requests are gone at once.
	// It is not kept by a server that forgets.
	LockDelay time.Duration
	// Guard, where not nil, is handed what keeps the session alive, where that is an open file (the file back end's), before Open returns: as long as another
	// process has it open as well, the locks of a session whose own process dies do not come free. An error ends Open. The file is the session's.
	Guard func(*os.File) error
	// Log takes what nobody can be returned: failed renewals, reconnects.
	// nil discards.
	Log *slog.Logger
}

// Session is a node's presence. It is safe for use by many goroutines.
//
// Every method that takes a context returns soon after the context's end
// (within 50 ms), whatever the server does, with an error that wraps
// context.Cause or ctx.Err. With the server out of reach, methods go on
// trying until the back end's own time-out (ErrUnavailable); a waiting
// Acquire goes on until ctx ends or the session is over (ErrSessionOver).
type Session interface {
	// ID identifies the session; no two sessions of a cluster ever have the same.
	ID() string

	// Acquire asks for a claim.
	//
	// With req.Wait it waits in the name's queue for its turn. When ctx ends
	// first it returns ErrGivenUp at once, and the session sees to it, in the
	// background and for as long as it lives, that neither the queue entry
	// nor a grant that crosses with it stays behind (req.TakenBack).
	//
	// Without req.Wait it returns ErrWouldBlock where it would have to wait,
	// and leaves nothing in the queue.
	//
	// ErrDeadlock: waiting would never end, for the owner in the way waits
	// for a lock in req.Held (see package queue).
	// ErrYield: a claim in the way has a Hint of at least req.YieldTo, now or
	// at some time while waiting; nothing is claimed.
	//
	// A request that may or may not have reached the server is repeated by
	// its id, so it is carried out once.
	Acquire(ctx context.Context, name string, req Request) (Claim, error)

	// Change shrinks, relabels and drops claims of this session on name, all
	// in one atomic step, hands what comes free to the next in line, and
	// returns the new claims, in the order of changes and of their To lists.
	// A claim that the session no longer has is passed over, and its To list
	// with it.
	//
	// It is retried by the session until the lease ends; ctx ends only the
	// caller's waiting, not the change itself.
	Change(ctx context.Context, name string, changes []Change) ([]Claim, error)

	// Holders returns the claims held by other live sessions that conflict
	// with lock, in the order of their first byte.
	Holders(ctx context.Context, name string, lock Lock) ([]Holder, error)

	// Events delivers what comes from other nodes. It must be read until
	// Done; the session never drops an event but may merge equal ones.
	Events() <-chan Event

	// Valid reports whether the lease still holds, judged by this machine's
	// CLOCK_BOOTTIME alone and without I/O. Once false it stays false.
	Valid() bool

	// Deadline is when Valid becomes false if the lease is not renewed until then,
	// on CLOCK_BOOTTIME, without I/O. It moves only to later times, until the
	// session is over; then it is in the past. NoDeadline: the lease has no end of its own.
	Deadline() time.Duration

	// Done is closed when the session is over: closed, or its lease lost. Err
	// then says why: nil after Close, else an error that wraps ErrSessionOver.
	Done() <-chan struct{}
	Err() error

	// Close says goodbye: all claims and queue entries are gone when it
	// returns nil, and the next in line have been told. ctx bounds it.
	Close(ctx context.Context) error
}

// Prompt is what a Session may be as well, where its server answers so fast that handing a request to another
// goroutine would cost as much as the answer.
//
// Both methods make the first attempt in the caller's goroutine, and return within 50 ms whatever the server does. What is
// not decided by then goes on by itself; the caller calls Result, once, from any goroutine.
type Prompt interface {
	// BeginAcquire is the first part of Acquire, and its Result the second: the end of Result's context takes the request back.
	BeginAcquire(name string, req Request) Pending[Claim]
	// BeginChange is the same for Change.
	BeginChange(name string, changes []Change) Pending[[]Claim]
}

// Bulk is what a Session may be as well, where one request can drop claims on many names.
type Bulk interface {
	// Drop does what a Change of each claim that keeps nothing would do. It is atomic for each name. As with Change, ctx ends only the
	// caller's waiting, but for what of many claims has not been sent yet.
	Drop(ctx context.Context, claims []Named) error
}

// Quiet is what a Session may be as well, where a Change that only relabels claims is no message to those who wait. There it pays to ask
// for claims that may be idle from the beginning (Request.Hint Kept), for one that is wanted is relabelled.
type Quiet interface{ RelabelsQuietly() }

// Named is a claim on a name.
type Named struct{ Name, ID string }

// Pending is a request on its way.
type Pending[T any] interface {
	// Decided reports that Result would not wait.
	Decided() bool
	// Ready is closed when the request is decided; not where the session is over. nil: only Result tells.
	Ready() <-chan struct{}
	Result(ctx context.Context) (T, error)
}

// Request is what Acquire asks for.
type Request struct {
	Lock
	// Wait: stand in the queue rather than fail with ErrWouldBlock.
	Wait bool
	// Held are the locks on the same name that the owner behind this request
	// has and keeps while it waits (an fcntl upgrade, say). The request goes
	// ahead of those who wait for them: behind them it would wait for ever.
	Held []Lock
	// Hint says what stands behind the claim, for others' YieldTo. Kept: it may be idle as soon
	// as it is granted, for nobody will say when it is.
	Hint Hint
	// Queued, where not nil, is called at most once, when the request has its
	// place in the queue and waits; not where Acquire decides at once. It must
	// not block. A node's requests that follow one another wait for it, so
	// that they stand in the queue in their order.
	Queued func()
	// TakenBack, where not nil, is called once when nothing is left, neither a place nor a grant, of a request that ended with
	// ErrGivenUp; until then it may be in others' way. Not where the session is over. It must not block.
	TakenBack func()
	// YieldTo, where it is not 0, ends the request with ErrYield as soon as a
	// claim in the way, held by another session, has at least this hint. With
	// ByOpen, which is any claim that is known to be in use, it ends so also where it would
	// have to stand behind another request: such a request waits for nothing but
	// to be told whether claims are in use that nodes keep (Kept).
	YieldTo Hint
}

// Claim is what a session holds.
type Claim struct {
	// ID identifies the claim among those of its session, for Change.
	ID string
	Lock
	// Token is the fencing token: greater than that of every grant of this
	// name before, through restarts and fail-overs. A claim that Change made
	// from another one keeps its token.
	Token uint64
	// Seq stamps the grant in the name's own order, to compare with
	// Event.Seq. A claim that Change made from another one keeps its Seq.
	Seq  uint64
	Hint Hint
	// Contended: when the claim was granted, another session's request that
	// conflicts with it was already waiting.
	Contended bool
}

// Change replaces one claim by smaller ones.
type Change struct {
	// ID is the claim to replace.
	ID string
	// To is what to keep of it, nothing to drop it. Each is within the old
	// claim's range and no greater than its mode.
	To []Keep
}

// Keep is a part of a claim that stays.
type Keep struct {
	Lock
	Hint Hint
}

// Holder is a claim of another session.
type Holder struct {
	Claim
	// Session is the holder's session, Node its SessionOptions.Node.
	Session, Node string
}

// Event says that another session waits for what this one holds.
type Event struct {
	// Name is the name that is wanted; empty when messages may have been
	// lost: any name may be wanted then.
	Name string
	// Seq: claims on Name with a smaller Claim.Seq are wanted. The greatest
	// value when Name is empty.
	Seq uint64
}

// Store keeps the names and small contents of a cluster. All methods are
// atomic across the cluster, and idempotent where a reply can be lost.
//
// Names are paths below the mount point without a slash at either end, the
// root being "". Components hold any byte but '/' and NUL; they are stored so
// that no two names are ever merged and nothing lies outside the back end's own
// directory or key prefix. Callers have checked the lengths (MaxComponent,
// MaxName) and that no component is empty, "." or "..".
//
// Kinds of errors: ErrNotExist (a name, its parent, or an inode without
// names), ErrNotDir (a parent is no directory), ErrExist, ErrNotEmpty,
// ErrIsDir, ErrTooLarge, ErrUnavailable.
type Store interface {
	// Stat returns what name is. The root always exists: a directory with
	// mode 1777 and inode RootIno, until Update changes it.
	Stat(ctx context.Context, name string) (Info, error)

	// StatInode returns the same by inode number.
	StatInode(ctx context.Context, ino uint64) (Info, error)

	// List returns the entries of a directory, in any order, each name once.
	List(ctx context.Context, dir string) ([]Entry, error)

	// Create makes a regular file, a directory or a symbolic link of what
	// info says: Mode (with the S_IFMT bits), UID, GID, Target and the
	// times. If name exists, whatever it is, ErrExist: of many callers
	// exactly one succeeds. The inode number is new, and chosen at random (62 bits).
	Create(ctx context.Context, name string, info Info) (Info, error)

	// Link makes newName another name of the file oldName (not of a directory: ErrIsDir).
	Link(ctx context.Context, oldName, newName string) (Info, error)

	// Rename moves oldName to newName, replacing what is there as rename(2)
	// does (a file by a file, an empty directory by a directory); with
	// noReplace, ErrExist where newName exists. Two names of one inode: nothing
	// happens. A directory that is not empty: ErrCrossDevice, at which
	// mv(1) copies.
	Rename(ctx context.Context, oldName, newName string, noReplace bool) error

	// Remove removes a name: with dir an empty directory (ErrNotDir,
	// ErrNotEmpty), else anything but a directory (ErrIsDir). The inode goes with its last name.
	Remove(ctx context.Context, name string, dir bool) error

	// Read returns at most n bytes of the file's contents from offset off;
	// fewer at its end.
	Read(ctx context.Context, ino uint64, off int64, n int) ([]byte, error)

	// Write puts data at offset off (or, where off is Append, at the end, in
	// one atomic step), fills a gap with zero bytes, sets the modification
	// time to mtime and returns the new state. Beyond MaxContent: ErrTooLarge,
	// and nothing is written.
	Write(ctx context.Context, ino uint64, off int64, data []byte, mtime time.Time) (Info, error)

	// Update changes the attributes that attr names.
	Update(ctx context.Context, ino uint64, attr Attr) (Info, error)
}

// NoDeadline is the Deadline of a session that lives as long as its process.
const NoDeadline time.Duration = math.MaxInt64

// Limits of names and contents.
const (
	MaxComponent = 255
	MaxName      = 1024
	MaxContent   = 512 << 10
	// RootIno is the inode number of the root directory.
	RootIno = 1
	// Append as an offset means the end of the file.
	Append = -1
)

// Info is what the store knows about a file.
type Info struct {
	Ino uint64
	// Mode has the type and the permissions, as in stat(2): S_IFREG, S_IFDIR or S_IFLNK.
	Mode     uint32
	UID, GID uint32
	// Nlink is the number of names; 2 for a directory.
	Nlink               uint32
	Size                int64
	Atime, Mtime, Ctime time.Time
	// Target is where a symbolic link points.
	Target string
}

// IsDir reports whether the file is a directory.
func (i Info) IsDir() bool { return i.Mode&0o170000 == 0o040000 }

// Entry is a file in a directory.
type Entry struct {
	// Name is the last component.
	Name string
	Info
}

// Attr names attributes to change: those that are not nil.
type Attr struct {
	// Mode holds permission bits only (07777).
	Mode         *uint32
	UID, GID     *uint32
	Size         *int64
	Atime, Mtime *time.Time
	// Ctime is always set to this, where it is not zero.
	Ctime time.Time
}
