package ledger

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/config"
)

// Entries returns what the ledger says now. It takes no lock that a writer may
// hold, so it works whatever has become of the writer.
func (l *Ledger) Entries() ([]Entry, error) {
	info, err := l.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("size of the ledger: %w", err)
	}
	size := int(info.Size())
	if size <= headerSize {
		return nil, nil
	}
	all, err := unix.Mmap(int(l.file.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ledger: %w", os.NewSyscallError("mmap", err))
	}
	defer unix.Munmap(all) //nolint:errcheck // a mapping that was made can be undone
	slots := slots(all[headerSize:])
	used := min(slots.count(), int(atomic.LoadUint64(l.word(wordUsed))))
	var entries []Entry
	for i := range used {
		if e, ok := slots.read(i); ok {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// slots is the memory behind the header, as far as it was there when it was mapped.
type slots []byte

func (s slots) count() int { return len(s) / slotSize }

func (s slots) slot(i int) []byte { return s[i*slotSize : (i+1)*slotSize] }

// read reads a slot, again when it was given to somebody else meanwhile.
func (s slots) read(i int) (Entry, bool) {
	for b := s.slot(i); ; {
		state := atomic.LoadUint64(at(b, wordState))
		if state&0xff == free {
			return Entry{}, false
		}
		load := func(word int) uint64 { return atomic.LoadUint64(at(b, word)) }
		who := load(wordHolder)
		e := Entry{
			Waits:  state&0xff == waits,
			Name:   s.name(b, int(who&0xffff)),
			Handle: load(wordHandle), Ino: load(wordIno), Token: load(wordToken),
			PID: uint32(who >> 32), Mode: backends.Mode(who >> 24),
			OnLost: config.OnLost{Signal: syscall.Signal(who >> 16 & 0xff), KillAfter: time.Duration(load(wordKillAfter))},
		}
		if load(wordState) == state {
			return e, true
		}
	}
}

// name reads a name of n bytes that begins in a slot. It believes nothing: the slots may be others' by now, which
// read notices. Where they are not mapped, the entry is newer than the mapping, and its name is cut off.
func (s slots) name(b []byte, n int) string {
	name := append(make([]byte, 0, n), b[nameAt:min(nameAt+n, slotSize)]...)
	for len(name) < n {
		more := int(atomic.LoadUint64(at(b, wordMore))) - 1
		if more < 0 || more >= s.count() {
			break
		}
		b = s.slot(more)
		name = append(name, b[moreAt:min(moreAt+n-len(name), slotSize)]...)
	}
	return string(name)
}
