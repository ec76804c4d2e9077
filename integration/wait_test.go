package integration

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
)

// patience is how long to wait for what must come. Only a failure takes that long.
const patience = 30 * time.Second

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, patience, what, ok)
}

func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	testserver.Within(t, limit, what, ok)
}

// must ends a test that can't go on.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want compares what a call returned with what it must return; 0 is success.
func want(t testing.TB, what string, err error, errno syscall.Errno) {
	t.Helper()
	if err == nil && errno == 0 || errno != 0 && errors.Is(err, errno) {
		return
	}
	expected := "success"
	if errno != 0 {
		expected = name(errno)
	}
	got := "success"
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		got = name(e)
	} else if err != nil {
		got = err.Error()
	}
	t.Fatalf("%s: got %s, want %s", what, got, expected)
}

func name(e syscall.Errno) string { return fmt.Sprintf("%s (%v)", unix.ErrnoName(e), e) }

// inFUSE reports whether a process's main thread waits for the answer of a FUSE server.
func inFUSE(pid int) bool {
	at, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return err == nil && strings.Contains(string(at), "request_wait_answer")
}

// waitsInFUSE reports whether it has been found waiting there throughout a
// span of time that no call takes which does not wait for a lock.
func waitsInFUSE(pid int) bool {
	for range 60 {
		if !inFUSE(pid) {
			return false
		}
		time.Sleep(2 * time.Millisecond)
	}
	return true
}

// monotonic is the time on the clock that the clients use, too.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux has it
	}
	return time.Duration(ts.Nano())
}

// children returns the children of a process.
func children(t testing.TB, pid int) []int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	must(t, err)
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		child, err := strconv.Atoi(field)
		must(t, err)
		pids = append(pids, child)
	}
	return pids
}
