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
	slots := all[headerSize:]
	used := min(len(slots)/slotSize, int(atomic.LoadUint64(l.word(wordUsed))))
	var entries []Entry
	for i := range used {
		if e, ok := read(slots[i*slotSize : (i+1)*slotSize]); ok {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// read reads a slot, again when it was given to somebody else meanwhile.
func read(b []byte) (Entry, bool) {
	for {
		state := atomic.LoadUint64(at(b, wordState))
		if state&0xff == free {
			return Entry{}, false
		}
		load := func(word int) uint64 { return atomic.LoadUint64(at(b, word)) }
		e := Entry{
			Waits:  state&0xff == waits,
			Name:   string(b[nameAt : nameAt+int(min(load(wordName), NameSize))]),
			Handle: load(wordHandle), Ino: load(wordIno), PID: uint32(load(wordPID)),
			Mode: backends.Mode(load(wordMode)), Token: load(wordToken),
			OnLost: config.OnLost{Signal: syscall.Signal(load(wordSignal)), KillAfter: time.Duration(load(wordKillAfter))},
		}
		if load(wordState) == state {
			return e, true
		}
	}
}
