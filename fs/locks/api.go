package locks

import (
	"context"
)

// Table is the node's lock table. It is safe for use by many goroutines.
type Table struct{}

// New opens a session and returns a table. ctx bounds the opening. The caller
// closes the table.
func New(ctx context.Context, options Options) (*Table, error) { panic("not yet") }

// Lock takes a lock, or changes the one that the owner has on those bytes.
//
// What the handle holds by its open alone is taken over by the first explicit call
// (Door Flock or Fcntl) on it that succeeds. A flock conversion lets go first, as flock(2) says.
//
// ctx is the caller's: when it ends (a signal), Lock returns an error wrapping
// ctx.Err() at once. Nothing stays behind, but for a few milliseconds in which the same
// owner's same request would find its place kept (SA_RESTART).
//
// Errors: backends.ErrWouldBlock, ErrDeadlock, ErrYield (Door Open only),
// ErrUnavailable (not waiting requests only), ErrClosed.
func (t *Table) Lock(ctx context.Context, r Request) error { panic("not yet") }

// Unlock gives up what the owner has on the bytes of r.Lock, and what the
// handle holds by its open alone. It returns when the back end has let go, or
// is out of reach and the session goes on trying.
func (t *Table) Unlock(ctx context.Context, r Request) error { panic("not yet") }

// Test returns the first lock in the way of r, as F_GETLK does.
func (t *Table) Test(ctx context.Context, r Request) (c Conflict, found bool, err error) {
	panic("not yet")
}

// ReleaseProcess gives up all locks of a process on a name: a descriptor of
// it was closed (FLUSH). Waits of that owner on the name end too.
func (t *Table) ReleaseProcess(name string, owner uint64) { panic("not yet") }

// Flushed says that a descriptor of the handle was closed, perhaps the last
// one: RELEASE may follow, and a request that is not to wait and meets this
// handle's lock gives it a few milliseconds. Any later call through the handle
// takes this back.
func (t *Table) Flushed(name string, handle uint64) { panic("not yet") }

// ReleaseHandle gives up all locks of a description and ends its waits: its
// last descriptor was closed (RELEASE). It also forgets that the handle lost a lock.
func (t *Table) ReleaseHandle(name string, handle uint64) { panic("not yet") }

// Lost reports whether a lock that was held through the handle was lost with
// its session: every call on the descriptor is to fail with EIO. It is cheap.
func (t *Table) Lost(handle uint64) bool { panic("not yet") }

// Held reports whether an owner on this node has a lock on the name.
func (t *Table) Held(name string) bool { panic("not yet") }

// Token returns the fencing token under which this node holds the name now.
func (t *Table) Token(name string) (token uint64, ok bool) { panic("not yet") }

// Close releases everything, says goodbye to the back end and ends all waits
// with ErrClosed. ctx bounds it.
func (t *Table) Close(ctx context.Context) error { panic("not yet") }
