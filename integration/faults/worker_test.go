package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/lease"
)

// workerEnv makes the test binary a worker: a job as JSON.
const workerEnv = "LOCKFS_FAULT_WORKER"

// job is what a worker is told.
type job struct {
	Mount   string   // where it takes locks
	Outside uint64   // the device below the mount: a file there is no lock
	Names   []string // the names to take
	Own     string   // a name that is nearly its own alone, whose claims are worth keeping
	Others  []string // such names of all workers
	Seed    uint64
	Kills   bool   // on_lost is KILL: it does not ask whether it still holds
	Log     string // the file for its events
	Board   string // the file for its board
	Storm   string // the file with the node's weather
	Longest time.Duration
}

// event is a line of a worker's record.
type event struct {
	At      int64 // CLOCK_BOOTTIME, ns
	Kind    string
	Attempt int64
	Name    string `json:",omitempty"`
	Write   bool   `json:",omitempty"`
	First   int    `json:",omitempty"` // its cells
	Last    int    `json:",omitempty"`
	How     string `json:",omitempty"`
	Errno   int    `json:",omitempty"` // -1: not known
	Token   uint64 `json:",omitempty"`
	Mark    int64  `json:",omitempty"` // lost: when it last held for sure; 0: never
}

// Kinds of events, in the order of an attempt.
const (
	evOpens    = "opens"    // an open for writing begins that may take the lock before the lock call does
	evShut     = "shut"     // it has failed
	evInvoke   = "invoke"   // a lock call begins
	evOK       = "ok"       // it has returned, with the lock
	evFail     = "fail"     // without
	evToken    = "token"    // the lock's token, while it was held for sure
	evRelease  = "release"  // a release begins
	evReleased = "released" // it has succeeded
	evLost     = "lost"     // the lock was found lost, by the holding or by the release
)

// Ways to take a lock, and to let it go.
const (
	waiting, trying, limited = "wait", "try", "limit"
	opening                  = "open-"   // an open that does one of them
	after                    = "opened-" // one of them after an open that may have taken the lock
	unlocking, closing       = "unlock", "close"
)

// Doors: what takes the lock. All lead to the same.
const (
	byFlock = iota
	byFcntl // classic, owned by the process
	byOFD
	byOpen // for writing
)

// Cells are what ranges are made of: so many bytes each, the last one goes on to the end of all files.
const cellCount, cellSize = 3, 100

// board is memory that a worker shares with the harness: what it does, even when it was killed.
type board struct {
	Attempt, State    atomic.Int64
	Marked, Mark      atomic.Int64 // the attempt that holds, and when it last did for sure
	Grants            atomic.Int64
	Failures, Opening atomic.Int64
}

// States of a worker.
const (
	idle = iota
	asking
	holding
	letting
)

// weather is memory that says whether a fault is on: holders hold on then, to see it.
type weather struct{ Storm atomic.Int64 }

// shared maps a file that it makes where there is none. The mapping ends with the process.
func shared[T any](path string) (*T, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(int64(os.Getpagesize())); err != nil {
		return nil, err
	}
	p, err := unix.MmapPtr(int(f.Fd()), 0, nil, uintptr(os.Getpagesize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return (*T)(p), nil
}

func now() int64 { return int64(lease.Now()) }

// worker is such a program. It does one thing after the other, on one thread.
type worker struct {
	job
	rng   *rand.Rand
	log   *os.File
	board *board
	storm *weather
	stop  atomic.Bool
	door  int   // of the attempt
	again int   // so many more attempts are like the last one
	last  event // that one, before it began
}

// workerMain runs until its standard input ends.
func workerMain(text string) int {
	runtime.LockOSThread() // children are to die with the thread that started them
	w := &worker{}
	if err := w.setUp(text); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 2
	}
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		w.stop.Store(true)
	}()
	for attempt := int64(1); !w.stop.Load(); attempt++ {
		if !w.attempt(attempt) {
			time.Sleep(time.Duration(1+w.rng.IntN(20)) * time.Millisecond)
		}
		w.board.State.Store(idle)
	}
	return 0
}

func (w *worker) setUp(text string) (err error) {
	if err := json.Unmarshal([]byte(text), &w.job); err != nil {
		return err
	}
	w.rng = rand.New(rand.NewPCG(w.Seed, 1))
	if w.log, err = os.OpenFile(w.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if w.board, err = shared[board](w.Board); err != nil {
		return err
	}
	w.storm, err = shared[weather](w.Storm)
	return err
}

// say writes an event down; one write, so that a killed worker leaves whole lines.
func (w *worker) say(e event) {
	line, err := json.Marshal(e)
	if err == nil {
		_, err = w.log.Write(append(line, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(2)
	}
}

// attempt takes one lock and lets it go; false where it got none.
func (w *worker) attempt(n int64) bool {
	e := w.next(n)
	w.board.Attempt.Store(n)
	if w.door == byOpen {
		return w.attemptOpen(e)
	}
	flags := unix.O_RDONLY
	if w.door != byFlock && e.Write {
		flags = unix.O_RDWR
		w.say(event{At: now(), Kind: evOpens, Attempt: n, Name: e.Name, Write: true, Last: cellCount - 1})
	}
	f, err := w.open(e.Name, flags)
	if err != nil {
		if flags == unix.O_RDWR {
			w.say(event{At: now(), Kind: evShut, Attempt: n})
		}
		w.board.Opening.Add(1)
		return false
	}
	defer f.Close() // a second time is nothing
	e.Kind, e.At = evInvoke, now()
	w.say(e)
	w.board.State.Store(asking)
	return w.came(f, e, w.lock(f, e))
}

// next is the attempt to make. Its own name is taken several times in a row, in the same way, so that the claim is worth
// keeping (docs/design.md, 'Kept claims'); such names of others are mostly tried.
func (w *worker) next(n int64) event {
	if w.again > 0 {
		w.again--
		w.last.Attempt = n
		return w.last
	}
	e := event{Attempt: n, Write: w.rng.IntN(3) > 0, Last: cellCount - 1}
	e.How = []string{waiting, waiting, waiting, trying, limited}[w.rng.IntN(5)]
	switch k := w.rng.IntN(20); {
	case k < 2:
		e.Name, w.again = w.Own, w.rng.IntN(12)
	case k < 5:
		e.Name, e.How = w.Others[w.rng.IntN(len(w.Others))], trying
		if w.rng.IntN(10) == 0 {
			e.How = waiting // while somebody waits, any try may be refused
		}
	default:
		e.Name = w.Names[w.rng.IntN(len(w.Names))]
	}
	w.door = []int{byFlock, byFlock, byFlock, byFcntl, byOFD, byOpen}[w.rng.IntN(6)]
	switch w.door {
	case byFlock:
	case byOpen:
		e.Write = true
		if e.How == limited {
			e.How = trying
		}
		e.How = opening + e.How
	default:
		e.First = w.rng.IntN(cellCount)
		e.Last = e.First + w.rng.IntN(cellCount-e.First)
		if e.How == limited {
			e.How = trying
		}
	}
	w.last = e
	return e
}

// attemptOpen takes the lock as open(name, "w") does. Its first write waits for it where the open was let through without
// (docs/contract.md, 'Open for writing'), so it holds for sure when that has returned.
func (w *worker) attemptOpen(e event) bool {
	flags := unix.O_WRONLY | unix.O_TRUNC
	if e.How != opening+waiting {
		flags |= unix.O_NONBLOCK
	}
	e.Kind, e.At = evInvoke, now()
	w.say(e)
	w.board.State.Store(asking)
	f, err := w.open(e.Name, flags)
	if errors.Is(err, errBelow) {
		w.board.Opening.Add(1)
		return w.came(nil, e, int(unix.ENOTCONN))
	}
	if err == nil {
		defer f.Close()
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Pwrite(int(f.Fd()), []byte(w.Mount), 0)
		}
	}
	return w.came(f, e, number(err))
}

// came is what follows on a lock call: that it failed, or the time with the lock.
func (w *worker) came(f *os.File, e event, errno int) bool {
	w.board.Marked.Store(0)
	w.board.Mark.Store(0)
	e.At, e.Errno = now(), errno
	if errno != 0 {
		e.Kind = evFail
		w.say(e)
		w.board.Failures.Add(1)
		return false
	}
	w.board.Marked.Store(e.Attempt)
	w.board.State.Store(holding)
	w.board.Grants.Add(1)
	e.Kind = evOK
	w.say(e)
	if w.hold(f, e) {
		w.release(f, e)
	}
	return true
}

// open opens a name, if the mount is there.
func (w *worker) open(name string, flags int) (*os.File, error) {
	fd := -1
	err := error(unix.EINTR)
	for err == unix.EINTR { // the Go runtime's own signals
		fd, err = unix.Open(filepath.Join(w.Mount, name), flags|unix.O_CREAT|unix.O_CLOEXEC, 0o666)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Dev == w.Outside {
		f.Close()
		return nil, errors.Join(err, errBelow)
	}
	return f, nil
}

// errBelow: the file is not on the mount, which has gone.
var errBelow = errors.New("not on the mount")

// lock asks for the lock, and returns the errno.
func (w *worker) lock(f *os.File, e event) int {
	if w.door != byFlock {
		return w.lockRange(f, e)
	}
	how := unix.LOCK_SH
	if e.Write {
		how = unix.LOCK_EX
	}
	switch e.How {
	case limited:
		return w.lockLimited(f, how)
	case trying:
		how |= unix.LOCK_NB
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR { // the Go runtime's own signals
			return number(err)
		}
	}
}

// lockRange asks for the event's cells by fcntl.
func (w *worker) lockRange(f *os.File, e event) int {
	mode := int16(unix.F_RDLCK)
	if e.Write {
		mode = unix.F_WRLCK
	}
	return number(w.fcntl(f, e, mode, e.How == waiting))
}

// fcntl locks or unlocks the event's cells.
func (w *worker) fcntl(f *os.File, e event, mode int16, wait bool) error {
	command := map[bool]int{false: unix.F_SETLK, true: unix.F_SETLKW}[wait]
	if w.door == byOFD {
		command = map[bool]int{false: unix.F_OFD_SETLK, true: unix.F_OFD_SETLKW}[wait]
	}
	lock := unix.Flock_t{Type: mode, Start: int64(e.First * cellSize), Len: int64((e.Last - e.First + 1) * cellSize)}
	if e.Last == cellCount-1 {
		lock.Len = 0
	}
	for {
		if err := unix.FcntlFlock(f.Fd(), command, &lock); err != unix.EINTR {
			return err
		}
	}
}

// lockLimited has flock(1) take the lock for the description that it shares with this process.
func (w *worker) lockLimited(f *os.File, how int) int {
	limit := time.Duration(1+w.rng.IntN(800)) * time.Millisecond
	flag := "-s"
	if how == unix.LOCK_EX {
		flag = "-x"
	}
	cmd := exec.Command("flock", flag, "-w", strconv.FormatFloat(limit.Seconds(), 'f', 3, 64), "3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() == 1 {
			return int(unix.ETIMEDOUT)
		}
		return -1
	}
	return number(err)
}

func number(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return int(e)
	}
	return -1
}

// mark notes that it holds, if it does.
func (w *worker) mark(f *os.File) error {
	at := now() // before it asks: the answer may be late
	if !w.Kills {
		if err := unix.Fsync(int(f.Fd())); err != nil {
			return err
		}
	}
	w.board.Mark.Store(at)
	return nil
}

// hold stays in the critical section for a while; false when the lock was lost there.
func (w *worker) hold(f *os.File, e event) bool {
	if err := w.mark(f); err != nil {
		return w.lost(e, err)
	}
	buf := make([]byte, 32)
	// The kernel asks for the file's mode first, which may take long while the back end is out of reach.
	size, tokenErr := unix.Fgetxattr(int(f.Fd()), "user.lockfs.token", buf)
	if err := w.mark(f); err != nil {
		return w.lost(e, err)
	}
	if token, err := strconv.ParseUint(string(buf[:max(size, 0)]), 10, 64); tokenErr == nil && err == nil {
		w.say(event{At: now(), Kind: evToken, Attempt: e.Attempt, Token: token})
	}
	until := now() + w.rng.Int64N(int64(4*time.Millisecond))
	longest := now() + w.rng.Int64N(int64(w.Longest))
	for now() < until {
		if w.storm.Storm.Load() != 0 {
			// To the fault's end and a little more, to see what it did to others.
			until = min(longest, now()+w.rng.Int64N(int64(300*time.Millisecond)))
		}
		time.Sleep(500 * time.Microsecond)
		if err := w.mark(f); err != nil {
			return w.lost(e, err)
		}
	}
	return true
}

func (w *worker) lost(e event, err error) bool {
	e.Kind, e.At, e.Errno, e.Mark = evLost, now(), number(err), w.board.Mark.Load()
	w.say(e)
	return false
}

func (w *worker) release(f *os.File, e event) {
	e.Kind, e.At, e.How = evRelease, now(), unlocking
	if w.again == 0 && w.rng.IntN(3) == 0 {
		e.How = closing
	}
	w.say(e)
	w.board.State.Store(letting)
	var err error
	if e.How == closing {
		err = f.Close()
	} else {
		err = w.unlock(f, e)
	}
	if err != nil {
		w.lost(e, err)
		return
	}
	e.Kind, e.At = evReleased, now()
	w.say(e)
}

// unlock lets the lock go, and gets signals meanwhile now and then, as a program does that is profiled: they are no reason to
// return before all see it.
func (w *worker) unlock(f *os.File, e event) (err error) {
	if w.rng.IntN(4) == 0 {
		defer w.pester()()
	}
	if w.door == byFcntl || w.door == byOFD {
		return w.fcntl(f, e, unix.F_UNLCK, false)
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	return err
}

// pester sends the worker's thread signals that mean nothing until the function returned is called.
func (w *worker) pester() (enough func()) {
	thread, stop := unix.Gettid(), make(chan struct{})
	go func() {
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // Go's own, which it expects at any time
			}
		}
	}()
	return func() { close(stop) }
}
