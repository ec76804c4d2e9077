// Package ledger is the memory that a server shares with its keeper: until when its
// lease lasts, and who holds what. It is a memfd, so it is there though the
// server is dead or stands still.
//
// The one idea: there is one writer, which can stop for ever between any two
// of its instructions, so the reader never waits for it and believes in no
// more than single words. A slot is filled while it is free, and becomes true by one
// store of its state, which carries a generation; whatever changes in a true
// slot is a word of its own. A name that a slot has no room for goes on in
// others, which stay free as for their state and are the slot's until it is free.
//
// Invariant: whoever has been told that it holds a lock is in the ledger
// from before it is told until it has let go; the deadline here is never
// later than the session's own.
package ledger

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/config"
)

// Entry is a description that holds, or whose caller waits.
type Entry struct {
	// Waits: it holds nothing; a caller waits for a lock through it.
	Waits bool
	// Name is the lock's.
	Name string
	// Handle is the description, by the server's count; Ino the inode number that the
	// kernel shows for it in /proc, 0 while its open has not returned.
	Handle, Ino uint64
	// PID is the process whose call took the lock, or waits.
	PID   uint32
	Mode  backends.Mode
	Token uint64
	// OnLost is what is to happen to it.
	OnLost config.OnLost
}

// Mount is what tells the mount from others: the numbers of its first line in /proc/self/mountinfo.
type Mount struct {
	ID           uint64
	Major, Minor uint32
}

const (
	headerSize = 4096
	slotSize   = 128
	chunkSize  = 1 << 20
	maxChunks  = 1 << 10
)

// The words of the header.
const (
	wordMagic = iota
	wordDeadline
	wordBusy
	wordMountID
	wordDevice
	wordBackend
	wordUsed
)

// The words of a slot; the name follows.
const (
	wordState  = iota
	wordMore   // 1 + the slot where the name goes on; 0: nowhere
	wordHolder // see holder
	wordHandle
	wordIno
	wordToken
	wordKillAfter
	nameAt = 8 * (wordKillAfter + 1)
	moreAt = 8 * (wordMore + 1) // in a slot where a name goes on
)

// holder is the word that says who took the lock and how, with two things that are of few bits and do not change: the length of the
// name and the signal.
func holder(pid uint32, mode backends.Mode, signal syscall.Signal, name int) uint64 {
	return uint64(pid)<<32 | uint64(mode)<<24 | uint64(signal)&0xff<<16 | uint64(name)
}

// States, the low byte of a slot's state; the rest is its generation.
const (
	free = iota
	holds
	waits
)

const magic = 0x6c6f636b66730002 // "lockfs", version 2

// Ledger is the shared memory, mapped. Methods that write are for one process
// at a time; it is safe for use by many goroutines.
type Ledger struct {
	file   *os.File
	header []byte

	mu     sync.Mutex
	chunks [][]byte // mapped one by one, and never moved
	used   int      // slots below were used
	spare  []Slot   // of these, the free ones
}

// Slot is an entry's place.
type Slot int

// New makes an empty ledger. The caller closes it.
func New() (*Ledger, error) {
	fd, err := unix.MemfdCreate("lockfs-ledger", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory to share with the server: %w", os.NewSyscallError("memfd_create", err))
	}
	file := os.NewFile(uintptr(fd), "ledger")
	if err := file.Truncate(headerSize); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("memory to share with the server: %w", err)
	}
	l, err := open(file)
	if err == nil {
		l.Reset()
	}
	return l, err
}

// Open maps the ledger that another process made, to write into it; it is to be empty. The caller closes
// the ledger, which closes the file.
func Open(file *os.File) (*Ledger, error) {
	l, err := open(file)
	if err == nil && atomic.LoadUint64(l.word(wordMagic)) != magic {
		_ = l.Close()
		return nil, errors.New("the memory shared with the keeper is not what this version of lockfs expects; mount again")
	}
	return l, err
}

func open(file *os.File) (*Ledger, error) {
	header, err := unix.Mmap(int(file.Fd()), 0, headerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("map the memory that keeper and server share: %w", os.NewSyscallError("mmap", err))
	}
	return &Ledger{file: file, header: header}, nil
}

// File is for handing on to a process that opens it. It stays the ledger's.
func (l *Ledger) File() *os.File { return l.file }

// Close gives up the mapping. Nobody uses the ledger any more.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := unix.Munmap(l.header)
	for _, chunk := range l.chunks {
		err = errors.Join(err, unix.Munmap(chunk))
	}
	l.chunks = nil
	return errors.Join(err, l.file.Close())
}

// Reset empties it for a new server, the old one being dead. What the header says of the back end stays.
func (l *Ledger) Reset() {
	backend := atomic.LoadUint64(l.word(wordBackend))
	_ = l.file.Truncate(headerSize) // the slots are gone; should it fail, wordUsed says so as well
	for i := range wordUsed + 1 {
		atomic.StoreUint64(l.word(i), 0)
	}
	atomic.StoreUint64(l.word(wordBackend), backend)
	l.SetDeadline(backends.NoDeadline)
	atomic.StoreUint64(l.word(wordMagic), magic)
}

func (l *Ledger) word(i int) *uint64 { return at(l.header, i) }

func at(b []byte, i int) *uint64 { return (*uint64)(unsafe.Pointer(&b[8*i])) }

// Deadline is when the lease ends, on CLOCK_BOOTTIME; backends.NoDeadline while nothing depends on one.
func (l *Ledger) Deadline() time.Duration {
	return time.Duration(atomic.LoadUint64(l.word(wordDeadline)))
}

// SetDeadline is for the server.
func (l *Ledger) SetDeadline(d time.Duration) { atomic.StoreUint64(l.word(wordDeadline), uint64(d)) }

// Busy is until when the server, which has noticed that its lease is lost, will have done what
// on_lost says; backends.NoDeadline when it is not at it.
func (l *Ledger) Busy() time.Duration {
	if d := time.Duration(atomic.LoadUint64(l.word(wordBusy))); d != 0 {
		return d
	}
	return backends.NoDeadline
}

// SetBusy is for the server; 0: no longer.
func (l *Ledger) SetBusy(until time.Duration) { atomic.StoreUint64(l.word(wordBusy), uint64(until)) }

// Mount says which mount the entries are of.
func (l *Ledger) Mount() Mount {
	device := atomic.LoadUint64(l.word(wordDevice))
	return Mount{atomic.LoadUint64(l.word(wordMountID)), uint32(device >> 32), uint32(device & math.MaxUint32)}
}

// SetMount is for whoever mounts.
func (l *Ledger) SetMount(m Mount) {
	atomic.StoreUint64(l.word(wordDevice), uint64(m.Major)<<32|uint64(m.Minor))
	atomic.StoreUint64(l.word(wordMountID), m.ID)
}

// Backend is the index in the configuration of the back end that the first server chose. A mount never
// moves to another.
func (l *Ledger) Backend() (index int, ok bool) {
	n := atomic.LoadUint64(l.word(wordBackend))
	return int(n) - 1, n > 0
}

// SetBackend is for the server.
func (l *Ledger) SetBackend(index int) { atomic.StoreUint64(l.word(wordBackend), uint64(index)+1) }

// Add enters an entry; it is true when Add returns. Without memory for it: an error.
func (l *Ledger) Add(e Entry) (Slot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Name = e.Name[:min(len(e.Name), backends.MaxName)]
	slot, err := l.take()
	if err != nil {
		return 0, err
	}
	b := l.slot(slot)
	if err := l.write(b, nameAt, e.Name); err != nil {
		l.giveBack(slot)
		return 0, err
	}
	state := uint64(holds)
	if e.Waits {
		state = waits
	}
	atomic.StoreUint64(at(b, wordHolder), holder(e.PID, e.Mode, e.OnLost.Signal, len(e.Name)))
	atomic.StoreUint64(at(b, wordHandle), e.Handle)
	atomic.StoreUint64(at(b, wordIno), e.Ino)
	atomic.StoreUint64(at(b, wordToken), e.Token)
	atomic.StoreUint64(at(b, wordKillAfter), uint64(e.OnLost.KillAfter))
	generation := atomic.LoadUint64(at(b, wordState)) >> 8
	atomic.StoreUint64(at(b, wordState), (generation+1)<<8|state)
	return slot, nil
}

// write puts a name into a slot, and what does not fit into others. The caller holds l.mu. On an error, what it has
// taken is noted in the slot.
func (l *Ledger) write(b []byte, at int, name string) error {
	n := copy(b[at:], name)
	setMore(b, 0)
	if n == len(name) {
		return nil
	}
	more, err := l.take()
	if err != nil {
		return err
	}
	setMore(b, uint64(more)+1)
	return l.write(l.slot(more), moreAt, name[n:])
}

func setMore(b []byte, more uint64) { atomic.StoreUint64(at(b, wordMore), more) }

// giveBack makes a slot that says nothing any more, and those where its name goes on, free to be used. The caller holds l.mu.
func (l *Ledger) giveBack(s Slot) {
	for more := uint64(s) + 1; more != 0; more = atomic.LoadUint64(at(l.slot(Slot(more-1)), wordMore)) {
		l.spare = append(l.spare, Slot(more-1))
	}
}

// take returns a free slot. The caller holds l.mu.
func (l *Ledger) take() (Slot, error) {
	if n := len(l.spare); n > 0 {
		slot := l.spare[n-1]
		l.spare = l.spare[:n-1]
		return slot, nil
	}
	if l.used == len(l.chunks)*(chunkSize/slotSize) {
		if err := l.grow(); err != nil {
			return 0, err
		}
	}
	slot := Slot(l.used)
	l.used++
	atomic.StoreUint64(l.word(wordUsed), uint64(l.used))
	return slot, nil
}

func (l *Ledger) grow() error {
	n := len(l.chunks)
	if n == maxChunks {
		return fmt.Errorf("more than %d locks held: %w", l.used, syscall.ENOSPC)
	}
	if err := l.file.Truncate(int64(headerSize + (n+1)*chunkSize)); err != nil {
		return fmt.Errorf("more memory to share with the keeper: %w", err)
	}
	chunk, err := unix.Mmap(int(l.file.Fd()), int64(headerSize+n*chunkSize), chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("more memory to share with the keeper: %w", os.NewSyscallError("mmap", err))
	}
	l.chunks = append(l.chunks, chunk)
	return nil
}

func (l *Ledger) slot(s Slot) []byte {
	const each = chunkSize / slotSize
	chunk := l.chunks[int(s)/each]
	offset := int(s) % each * slotSize
	return chunk[offset : offset+slotSize : offset+slotSize]
}

// SetIno completes an entry, when its file is known.
func (l *Ledger) SetIno(s Slot, ino uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	atomic.StoreUint64(at(l.slot(s), wordIno), ino)
}

// SetHolder changes who took the lock, how, and under which token.
func (l *Ledger) SetHolder(s Slot, pid uint32, mode backends.Mode, token uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.slot(s)
	const stays = 0xffffff // signal and length of the name
	atomic.StoreUint64(at(b, wordHolder), holder(pid, mode, 0, 0)|atomic.LoadUint64(at(b, wordHolder))&stays)
	atomic.StoreUint64(at(b, wordToken), token)
}

// Free strikes an entry out.
func (l *Ledger) Free(s Slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	state := at(l.slot(s), wordState)
	atomic.StoreUint64(state, atomic.LoadUint64(state)&^0xff)
	l.giveBack(s)
}
