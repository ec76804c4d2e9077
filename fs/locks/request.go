// Package locks is the node's lock table: it decides among the owners on one
// node, and asks the back end only when the node as a whole needs more than
// it has.
package locks

import "lockfs/backends"

// OwnerKind says what an Owner's ID counts.
type OwnerKind uint8

const (
	// Description is an open file description: the owner of flock, OFD and
	// open locks. Its ID is the handle (Fh) that fs gave it.
	Description OwnerKind = iota
	// Process is the owner of classic fcntl locks. Its ID is the kernel's
	// lock owner, which stands for a process's file table.
	Process
)

// Owner is who holds or wants a lock.
type Owner struct {
	Kind OwnerKind
	ID   uint64
}

// Door is the call that a request comes from.
type Door uint8

const (
	// Open is an open for writing, or the first write through a descriptor
	// whose open was let through without a lock.
	Open Door = iota
	// Flock is flock(2).
	Flock
	// Fcntl is fcntl(2) with a classic or an OFD lock.
	Fcntl
)

// Request is a lock call.
type Request struct {
	Name  string
	Owner Owner
	// Handle is the open file description through which the call came.
	Handle uint64
	Door   Door
	// Lock is what is wanted; Mode None unlocks (Unlock only).
	Lock backends.Lock
	// Writable: the descriptor was opened for writing.
	Writable bool
	// Wait as with F_SETLKW; else ErrWouldBlock where it would have to.
	Wait bool
	// Created, for Door Open: the open made the file, O_EXCL.
	Created bool
	// PID is the caller's process, for F_GETLK and for logs.
	PID uint32
	// YieldTo, for Door Open: return backends.ErrYield where the lock is held
	// by calls of at least this kind (of other descriptors, here or on other
	// nodes), now or at some time while waiting. 0: never.
	YieldTo backends.Hint
}

// Conflict is a lock in the way.
type Conflict struct {
	Lock backends.Lock
	// PID is the holder's, 0 where it is on another node.
	PID uint32
}
