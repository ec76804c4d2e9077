package ledger

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/config"
)

const writerEnv = "LOCKFS_TEST_WRITER"

func TestMain(m *testing.M) {
	if os.Getenv(writerEnv) != "" {
		write()
	}
	os.Exit(m.Run())
}

func newLedger(t *testing.T) *Ledger {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// again opens the same memory, as another process would.
func again(t *testing.T, l *Ledger) *Ledger {
	t.Helper()
	fd, err := unix.FcntlInt(l.File().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(os.NewFile(uintptr(fd), "again"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	return other
}

func sample(i int) Entry {
	return Entry{Waits: i%3 == 0, Name: fmt.Sprint("dir/name ", i), Handle: uint64(i), Ino: 1<<61 + uint64(i), PID: uint32(i + 1),
		Mode: backends.Mode(1 + i%2), Token: 1<<63 + uint64(i),
		OnLost: config.OnLost{Signal: syscall.SIGTERM, KillAfter: time.Duration(i)}}
}

func entries(t *testing.T, l *Ledger) []Entry {
	t.Helper()
	all, err := l.Entries()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	reader := newLedger(t)
	writer := again(t, reader)
	if got := entries(t, reader); len(got) != 0 || reader.Deadline() != backends.NoDeadline || reader.Busy() != backends.NoDeadline {
		t.Errorf("new: %v, %v, %v", got, reader.Deadline(), reader.Busy())
	}
	const n = 3 * chunkSize / slotSize / 2 // more than a chunk
	var want []Entry
	var slots []Slot
	for i := range n {
		slot, err := writer.Add(sample(i))
		if err != nil {
			t.Fatal(err)
		}
		want, slots = append(want, sample(i)), append(slots, slot)
	}
	if got := entries(t, reader); !reflect.DeepEqual(got, want) {
		t.Fatalf("%d entries, want %d", len(got), n)
	}
	for i := range n {
		if i%2 == 1 {
			writer.Free(slots[i])
		}
	}
	writer.SetIno(slots[2], 99)
	writer.SetHolder(slots[2], 98, backends.Write, 97)
	want[2].Ino, want[2].PID, want[2].Mode, want[2].Token = 99, 98, backends.Write, 97
	want = slices.DeleteFunc(want, func(e Entry) bool { return e.Handle%2 == 1 })
	if got := entries(t, reader); !reflect.DeepEqual(got, want) {
		t.Fatalf("after freeing %d entries, want %d", len(got), len(want))
	}
	long := sample(1)
	long.Name = strings.Repeat("long", backends.MaxName/4)
	slot, err := writer.Add(long)
	if err != nil || int(slot) >= n {
		t.Errorf("a free slot was not used again: %v, %v", slot, err)
	}
	if got := entries(t, reader)[slot/2+1]; !reflect.DeepEqual(got, long) {
		t.Errorf("a long name: %+v", got)
	}
	writer.Free(slot)
	if got := entries(t, reader); !reflect.DeepEqual(got, want) {
		t.Fatalf("after the long name %d entries, want %d", len(got), len(want))
	}
}

// TestNamesOfAnyLength: all bytes of a name are kept, and all slots that it took are used again.
func TestNamesOfAnyLength(t *testing.T) {
	reader := newLedger(t)
	writer := again(t, reader)
	for length := range backends.MaxName + 1 {
		e := sample(1)
		e.Name = strings.Repeat("0123456789abcdef", backends.MaxName/16)[:length]
		slot, err := writer.Add(e)
		if err != nil {
			t.Fatal(err)
		}
		writer.SetHolder(slot, e.PID+1, e.Mode, e.Token)
		e.PID++
		if got := entries(t, reader); !reflect.DeepEqual(got, []Entry{e}) {
			t.Fatalf("a name of %d bytes: %+v", length, got)
		}
		writer.Free(slot)
	}
	if used, most := writer.used, 1+(backends.MaxName-(slotSize-nameAt)+(slotSize-moreAt)-1)/(slotSize-moreAt); used != most {
		t.Errorf("%d slots were used, where %d do", used, most)
	}
}

func TestHeader(t *testing.T) {
	reader := newLedger(t)
	writer := again(t, reader)
	if _, ok := reader.Backend(); ok {
		t.Error("a back end before one was set")
	}
	mount := Mount{77, 1 << 20, 1<<20 + 5}
	writer.SetMount(mount)
	writer.SetDeadline(5)
	writer.SetBusy(6)
	writer.SetBackend(0)
	if _, err := writer.Add(sample(1)); err != nil {
		t.Fatal(err)
	}
	index, ok := reader.Backend()
	if reader.Mount() != mount || reader.Deadline() != 5 || reader.Busy() != 6 || index != 0 || !ok {
		t.Errorf("%+v, %v, %v, %v, %v", reader.Mount(), reader.Deadline(), reader.Busy(), index, ok)
	}
	reader.Reset()
	index, ok = reader.Backend()
	if got := entries(t, reader); len(got) != 0 || reader.Mount() != (Mount{}) || reader.Deadline() != backends.NoDeadline || index != 0 || !ok {
		t.Errorf("after Reset: %v, %+v, %v, %v, %v", got, reader.Mount(), reader.Deadline(), index, ok)
	}
}

func TestForeignMemory(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(headerSize); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f); err == nil {
		t.Error("opened")
	}
}

const (
	lasting = 10 // entries of the writer that stay
	moving  = 50 // and that come and go
)

// write is a server that is never at rest: entries in which every word says the same, and names of which many go on in other slots.
func write() {
	l, err := Open(os.NewFile(3, "ledger"))
	if err != nil {
		panic(err)
	}
	slots := make([]Slot, moving)
	for i := uint64(1); ; i++ {
		k := i % moving
		if i > lasting+moving {
			l.Free(slots[k])
		}
		e := Entry{Name: strings.Repeat(string(rune('a'+i%26)), int(i%500)), Handle: i, Ino: i, PID: uint32(i), Token: i,
			OnLost: config.OnLost{Signal: syscall.Signal(i), KillAfter: time.Duration(i)}}
		if slots[k], err = l.Add(e); err != nil {
			panic(err)
		}
	}
}

// rests reports whether all threads of a process have stopped or ended.
func rests(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		stat, _ := os.ReadFile(thread) // it may be gone by now
		_, state, _ := strings.Cut(string(stat), ") ")
		if state != "" && !strings.ContainsAny(state[:1], "TZX") {
			return false
		}
	}
	return true
}

// TestWriterStoppedAndKilled: whatever the writer is doing, stops in or dies in, the reader
// sees whole entries, at once, and of those that stay each.
func TestWriterStoppedAndKilled(t *testing.T) {
	l := newLedger(t)
	for round := range 10 {
		l.Reset()
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), writerEnv+"=1")
		c.ExtraFiles = []*os.File{l.File()}
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it would write for ever
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		busy := func(e Entry) bool { return e.Handle > 10*(lasting+moving) }
		for !slices.ContainsFunc(entries(t, l), busy) {
			time.Sleep(time.Millisecond)
		}
		least := lasting // while it runs, others may be found in neither of two places
		if round%3 != 0 {
			if err := c.Process.Signal([]os.Signal{syscall.SIGSTOP, syscall.SIGKILL}[round%3-1]); err != nil {
				t.Fatal(err)
			}
			for !rests(t, c.Process.Pid) {
				time.Sleep(time.Millisecond)
			}
			least = lasting + moving - 1
		}
		for range 200 {
			got := entries(t, l)
			stay := 0
			for _, e := range got {
				if e.Handle <= lasting {
					stay++
				}
			}
			if len(got) < least || stay != lasting {
				t.Fatalf("only %d entries, of which %d stay", len(got), stay)
			}
			for _, e := range got {
				if e.Ino != e.Handle || e.Token != e.Handle || uint64(e.OnLost.KillAfter) != e.Handle || uint64(e.PID) != e.Handle&0xffffffff ||
					e.Name != strings.Repeat(string(rune('a'+e.Handle%26)), int(e.Handle%500)) {
					t.Fatalf("a torn entry: %+v", e)
				}
			}
		}
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

func BenchmarkAddFree(b *testing.B) {
	l, err := New()
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		slot, err := l.Add(sample(1))
		if err != nil {
			b.Fatal(err)
		}
		l.Free(slot)
	}
}
