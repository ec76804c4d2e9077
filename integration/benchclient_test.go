package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The programs of the benchmark: this test binary once more, as the work "bench", which makes the calls that it is told by
// lines on its standard input and answers each with a line of JSON. What is timed are raw system calls on
// the main thread, with nothing of Go's scheduler in between, as a C program would make them.

const benchWork = "bench"

func init() {
	works[benchWork] = serveBench
	if os.Getenv(workEnv) == benchWork {
		runtime.LockOSThread() // the main goroutine stays on the main thread, whose state /proc shows
	}
}

// benchAnswer is what a call, or a row of calls, came to.
type benchAnswer struct {
	Err string `json:",omitempty"`
	// Times is how long each round took, in ns.
	Times []time.Duration `json:",omitempty"`
	// Began, Ended are on the clock of monotonic.
	Began, Ended time.Duration
	// Count is how many: locks, waiters.
	Count int
	// Violations counts how often somebody else was inside.
	Violations int
}

// benchSide is the program's own state.
type benchSide struct {
	fd      int
	held    []int // by hold, until the end
	granted atomic.Int64
	served  atomic.Int64  // how many have let go again
	firstAt atomic.Int64  // when the first was granted
	lastAt  atomic.Int64  // when the last one had let go
	gate    chan struct{} // closed when those who have been granted may go on
	lastErr atomic.Pointer[error]
}

func serveBench([]string) error {
	s := &benchSide{fd: -1, gate: make(chan struct{})}
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		words := strings.Split(in.Text(), "\t")
		a, err := s.do(words[0], words[1:])
		if err != nil {
			a.Err = fmt.Sprintf("%s: %v", in.Text(), err)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return in.Err()
}

func (s *benchSide) do(verb string, args []string) (benchAnswer, error) {
	number := func(i int) int { n, _ := strconv.Atoi(args[i]); return n } // the other end writes numbers
	switch verb {
	case "open":
		return benchAnswer{}, s.open(args[0])
	case "statfs":
		var st unix.Statfs_t
		return rounds(number(0), func() error { return unix.Fstatfs(s.fd, &st) })
	case "cycle":
		return rounds(number(0), func() error { return lockUnlock(s.fd, ex) })
	case "reopen":
		return rounds(number(0), func() error { return openLockClose(args[1]) })
	case "first":
		return firstLocks(number(0), args[1])
	case "lock":
		return timedCall(func() error { return rawFlock(s.fd, ex) })
	case "unlock":
		return timedCall(func() error { return rawFlock(s.fd, un) })
	case "wait":
		go s.wait(number(0), args[1]) // settled, at the other end, sees how far it is
		return benchAnswer{}, nil
	case "granted":
		return benchAnswer{Count: int(s.granted.Load()), Ended: time.Duration(s.firstAt.Load())}, s.waitersErr()
	case "drain":
		close(s.gate)
		return benchAnswer{}, nil
	case "served":
		return benchAnswer{Count: int(s.served.Load()), Ended: time.Duration(s.lastAt.Load())}, s.waitersErr()
	case "hold":
		return benchAnswer{Count: number(0)}, s.hold(number(0), args[1])
	}
	return benchAnswer{}, errors.New("no such call")
}

func (s *benchSide) open(path string) (err error) {
	s.fd, err = syscall.Open(path, rdonly|creat|syscall.O_CLOEXEC, 0o666)
	return err
}

// rawFlock is flock(2) without telling the scheduler, which would cost a waiter more than a wake-up.
func rawFlock(fd, how int) error {
	for {
		_, _, errno := syscall.RawSyscall(syscall.SYS_FLOCK, uintptr(fd), uintptr(how), 0)
		switch errno {
		case 0:
			return nil
		case syscall.EINTR:
		default:
			return errno
		}
	}
}

func lockUnlock(fd, how int) error {
	if err := rawFlock(fd, how); err != nil {
		return err
	}
	return rawFlock(fd, un)
}

func openLockClose(path string) error {
	fd, err := syscall.Open(path, rdonly|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := rawFlock(fd, ex); err != nil {
		return err
	}
	return syscall.Close(fd)
}

func warmUp(n int) int { return n/10 + 1 }

// rounds times f n times, after some to warm up.
func rounds(n int, f func() error) (a benchAnswer, err error) {
	for range warmUp(n) {
		if err := f(); err != nil {
			return a, err
		}
	}
	a.Times = make([]time.Duration, n)
	for i := range a.Times {
		began := monotonic()
		if err := f(); err != nil {
			return a, err
		}
		a.Times[i] = monotonic() - began
	}
	return a, nil
}

func timedCall(f func() error) (a benchAnswer, err error) {
	a.Began = monotonic()
	err = f()
	a.Ended = monotonic()
	return a, err
}

// firstLocks times lock and unlock of names that nobody has had before, without their creation.
func firstLocks(n int, prefix string) (a benchAnswer, err error) {
	for i := range n {
		fd, err := syscall.Open(prefix+strconv.Itoa(i), rdonly|creat|syscall.O_CLOEXEC, 0o666)
		if err != nil {
			return a, err
		}
		began := monotonic()
		if err := lockUnlock(fd, ex); err != nil {
			return a, err
		}
		a.Times = append(a.Times, monotonic()-began)
		if err := syscall.Close(fd); err != nil {
			return a, err
		}
	}
	return a, nil
}

// wait makes n threads wait for the lock, each through a description of its own. Whoever gets it
// keeps it until the gate is open.
func (s *benchSide) wait(n int, path string) {
	for range n {
		fd, err := syscall.Open(path, rdonly|creat|syscall.O_CLOEXEC, 0o666)
		if err != nil {
			s.lastErr.Store(&err)
			return
		}
		go func() { // ends with the program, if not before
			if err := s.waitForTurn(fd); err != nil {
				s.lastErr.Store(&err)
			}
		}()
	}
}

func (s *benchSide) waitForTurn(fd int) error {
	if _, err := again(func() (int, error) { return 0, syscall.Flock(fd, ex) }); err != nil {
		return err
	}
	s.firstAt.CompareAndSwap(0, int64(monotonic()))
	s.granted.Add(1)
	<-s.gate
	if err := syscall.Flock(fd, un); err != nil {
		return err
	}
	s.lastAt.Store(int64(monotonic())) // or a moment before the last one
	s.served.Add(1)
	return nil
}

func (s *benchSide) waitersErr() error {
	if err := s.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}

// hold takes n locks and keeps them as long as the program lives.
func (s *benchSide) hold(n int, prefix string) error {
	for i := range n {
		fd, err := syscall.Open(prefix+strconv.Itoa(i), rdonly|creat|syscall.O_CLOEXEC, 0o666)
		if err != nil {
			return err
		}
		s.held = append(s.held, fd)
		if err := rawFlock(fd, ex|nb); err != nil {
			return err
		}
	}
	return nil
}

// benchClient is such a program, from the benchmark's side.
type benchClient struct {
	t       testing.TB
	cmd     *exec.Cmd
	in      io.Writer
	answers chan benchAnswer
	stderr  bytes.Buffer // read when answers is closed
	once    sync.Once
}

// benchPatience is how long the longest call may take.
const benchPatience = 6 * time.Minute

// benchClient starts a program, which has path open where that is not empty. It ends with the test.
func newBenchClient(t testing.TB, path string) *benchClient {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	// No signals from the scheduler: a C program doesn't get them either.
	cmd.Env = append(os.Environ(), workEnv+"="+benchWork, "GODEBUG=asyncpreemptoff=1", "GORACE=atexit_sleep_ms=0")
	c := startBenchClient(t, cmd)
	if path != "" {
		c.ask("open", path)
	}
	return c
}

// startBenchClient starts a command that answers as serveBench does.
func startBenchClient(t testing.TB, cmd *exec.Cmd) *benchClient {
	t.Helper()
	c := &benchClient{t: t, cmd: cmd, answers: make(chan benchAnswer, 1)}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.cmd.Stderr = &c.stderr
	in, err := c.cmd.StdinPipe()
	must(t, err)
	c.in = in
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	must(t, c.cmd.Start())
	go func() {
		defer close(c.answers)
		for d := json.NewDecoder(out); ; {
			var a benchAnswer
			if d.Decode(&a) != nil {
				_ = c.cmd.Wait() // answers says that it has ended
				return
			}
			c.answers <- a
		}
	}()
	t.Cleanup(c.end)
	return c
}

// end kills the program and returns when the kernel has let go of what it had.
func (c *benchClient) end() {
	c.once.Do(func() {
		_ = c.cmd.Process.Kill() // it may have ended
		for range c.answers {
		}
	})
}

// begin makes the program begin a call.
func (c *benchClient) begin(verb string, args ...any) {
	c.t.Helper()
	line := verb
	for _, arg := range args {
		line += "\t" + fmt.Sprint(arg)
	}
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		c.t.Fatalf("%s: %v", line, err)
	}
}

// answer returns what the call came to.
func (c *benchClient) answer() benchAnswer {
	c.t.Helper()
	select {
	case a, ok := <-c.answers:
		if !ok {
			c.t.Fatalf("a program of the benchmark has ended: %s", tail(c.stderr.String(), 2000))
		}
		if a.Err != "" {
			c.t.Fatal(a.Err)
		}
		return a
	case <-time.After(benchPatience):
		c.t.Fatalf("a program of the benchmark does not answer within %v", benchPatience)
	}
	return benchAnswer{}
}

func (c *benchClient) ask(verb string, args ...any) benchAnswer {
	c.t.Helper()
	c.begin(verb, args...)
	return c.answer()
}

// waitingThreads counts the program's threads that wait for a FUSE server.
func (c *benchClient) waitingThreads() int {
	n := 0
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", c.cmd.Process.Pid))
	for _, task := range tasks {
		if at, err := os.ReadFile(task); err == nil && bytes.Contains(at, []byte("request_wait_answer")) {
			n++
		}
	}
	return n
}

// pageSize is that of the memory which the members of a crowd share.
const pageSize = 4096
