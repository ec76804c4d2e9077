package backends

import "fmt"

// Mode says how a lock may be shared. The order of the values matters:
// a greater mode includes what a smaller one allows.
type Mode uint8

const (
	// None is no lock; as a wanted mode it means unlock.
	None Mode = iota
	// Read is a shared lock.
	Read
	// Write is an exclusive lock.
	Write
)

// String returns "none", "read" or "write".
func (m Mode) String() string {
	switch m {
	case None:
		return "none"
	case Read:
		return "read"
	case Write:
		return "write"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// MaxByte is the greatest byte offset that a lock can cover: the kernel's
// OFFSET_MAX, the end of a lock "to the end of the file".
const MaxByte = 1<<63 - 1

// Range is a range of bytes of a name; both ends belong to it.
type Range struct {
	First, Last uint64
}

// Whole is the range of a lock on a whole name (flock, open for writing).
var Whole = Range{First: 0, Last: MaxByte}

// Overlaps reports whether the two ranges have a byte in common.
func (r Range) Overlaps(o Range) bool { return r.First <= o.Last && o.First <= r.Last }

// Contains reports whether every byte of o is in r.
func (r Range) Contains(o Range) bool { return r.First <= o.First && o.Last <= r.Last }

// Intersect returns the bytes common to both; ok is false where there are none.
func (r Range) Intersect(o Range) (both Range, ok bool) {
	both = Range{First: max(r.First, o.First), Last: min(r.Last, o.Last)}
	return both, both.First <= both.Last
}

// Lock is a mode on a range of bytes.
type Lock struct {
	Range
	Mode Mode
}

// Conflicts reports whether two owners can't have a and b at the same time.
func (l Lock) Conflicts(o Lock) bool {
	return l.Mode != None && o.Mode != None && (l.Mode == Write || o.Mode == Write) && l.Overlaps(o.Range)
}

// Hint says what kind of call stands behind a lock. Nodes tell each other, so
// that an open for writing on one node can know that the holder on another
// node locks by explicit calls (docs/contract.md, "Open for writing").
type Hint uint8

const (
	// Kept: the node keeps the claim, and it may be idle at this moment. As soon as
	// another session waits for it, the node gives it up or says by another hint what stands behind it.
	Kept Hint = iota
	// ByOpen: only opens for writing stand behind the lock.
	ByOpen
	// ByCall: flock or fcntl on a descriptor that was opened for reading only.
	ByCall
	// ByCallOnWritable: flock or fcntl on a descriptor that was itself opened for writing.
	ByCallOnWritable
)
