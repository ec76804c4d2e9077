package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { works["ranges"] = takeRanges }

// The file of TestByteRanges, the most ranges that a process has at a time, and the fewest that it takes in all.
const (
	rangeSlots    = 64
	rangeSlotSize = 8
	rangesAtOnce  = 8
	rangesLeast   = 10
)

// slotRange is some slots of the file.
type slotRange struct{ first, end int }

// ranger has byte ranges of a file by locks of its one open file description.
type ranger struct {
	file           *os.File
	mark           []byte // written to each slot that it has
	held           []slotRange
	taken, refused int
}

// takeRanges is a process of TestByteRanges: "ranges SECONDS PATH". It says "held" when it has opened the file, begins at the
// end of its standard input, and prints how many ranges it took and how many tries were refused.
func takeRanges(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: SECONDS PATH")
	}
	seconds, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[1], rdwr, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r := &ranger{file: f, mark: fmt.Appendf(nil, "%0*d", rangeSlotSize, os.Getpid())}
	if err := r.fcntl(unix.F_UNLCK, slotRange{0, rangeSlots}); err != nil { // what the open took
		return err
	}
	fmt.Println("held")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	for end := time.Now().Add(time.Duration(seconds) * time.Second); r.taken < rangesLeast || time.Now().Before(end); {
		if err := r.step(); err != nil {
			return fmt.Errorf("after %d ranges: %w", r.taken, err)
		}
	}
	fmt.Println(r.taken, r.refused)
	return nil
}

// step tries one range at random.
func (r *ranger) step() error {
	first := rand.IntN(rangeSlots)
	want := slotRange{first, min(first+1+rand.IntN(4), rangeSlots)}
	if err := r.makeRoom(want); err != nil {
		return err
	}
	err := r.fcntl(unix.F_WRLCK, want)
	if errors.Is(err, syscall.EAGAIN) {
		r.refused++
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	r.taken++
	r.held = append(r.held, want)
	if _, err := r.file.WriteAt(bytes.Repeat(r.mark, want.end-want.first), int64(want.first*rangeSlotSize)); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// makeRoom lets go of what overlaps the range, and of the oldest where there are too many.
func (r *ranger) makeRoom(want slotRange) error {
	var kept []slotRange
	for i, have := range r.held {
		if i > 0 || len(r.held) < rangesAtOnce {
			if have.end <= want.first || want.end <= have.first {
				kept = append(kept, have)
				continue
			}
		}
		if err := r.letGo(have); err != nil {
			return err
		}
	}
	r.held = kept
	return nil
}

// letGo finds in the range what was written there, and unlocks it.
func (r *ranger) letGo(have slotRange) error {
	got := make([]byte, (have.end-have.first)*rangeSlotSize)
	if _, err := r.file.ReadAt(got, int64(have.first*rangeSlotSize)); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if want := bytes.Repeat(r.mark, have.end-have.first); !bytes.Equal(got, want) {
		return fmt.Errorf("%v holds %q, not %q: somebody else had it too", have, got, want)
	}
	return r.fcntl(unix.F_UNLCK, have)
}

func (r *ranger) fcntl(how int16, what slotRange) error {
	lock := unix.Flock_t{Type: how, Start: int64(what.first * rangeSlotSize), Len: int64((what.end - what.first) * rangeSlotSize)}
	_, err := again(func() (int, error) { return 0, unix.FcntlFlock(r.file.Fd(), unix.F_OFD_SETLK, &lock) })
	return err
}

// Descriptions on two nodes have ranges of one file, many at a time, and nobody finds another's mark in its own.
func TestByteRanges(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		must(t, os.WriteFile(e.on(0, "x"), make([]byte, rangeSlots*rangeSlotSize), 0o666))
		var all []*process
		for i := range 4 {
			all = append(all, startWith(t, []string{workEnv + "=ranges"}, os.Args[0],
				fmt.Sprint(int(crowdTime/time.Second)), e.on(i%len(e.nodes), "x")).held())
		}
		for _, p := range all {
			must(t, p.in.Close())
		}
		for _, p := range all {
			p.code(0)
			var taken, refused int
			_, err := fmt.Sscanf(p.out.String(), "held\n%d %d\n", &taken, &refused)
			must(t, err)
			t.Logf("%d ranges, %d refused", taken, refused)
			if refused == 0 {
				t.Error("nobody was in its way")
			}
		}
		e.empty(t, patience)
	})
}
