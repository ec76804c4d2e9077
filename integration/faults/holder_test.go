package faults

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// holderEnv makes the test binary a program that takes one lock and holds it, or its child: a holderJob as JSON.
const holderEnv = "LOCKFS_FAULT_HOLDER"

type holderJob struct {
	Path   string
	Boards [2]string // the holder's own and its child's
	Child  bool
}

// holderMain takes the lock, has a child that inherits the descriptor, and both say all the time that they run. They ask
// nothing of the mount. Both end with their standard input.
func holderMain(text string) int {
	runtime.LockOSThread()
	if err := holdOn(text); err != nil {
		fmt.Fprintln(os.Stderr, "holder:", err)
		return 2
	}
	return 0
}

func holdOn(text string) error {
	var job holderJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	mine := job.Boards[0]
	if job.Child {
		mine = job.Boards[1]
	} else if err := job.take(); err != nil {
		return err
	}
	b, err := shared[board](mine)
	if err != nil {
		return err
	}
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for tick := unix.NsecToTimespec(int64(200 * time.Microsecond)); ; _ = unix.Nanosleep(&tick, nil) {
		b.Mark.Store(now())
	}
}

// take takes the lock and starts the child. It keeps the descriptor for good.
func (j holderJob) take() error {
	fd, err := unix.Open(j.Path, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), j.Path)
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	if err != nil {
		return err
	}
	held = f
	j.Child = true
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), holderEnv+"="+string(text))
	child.Stdin, child.Stderr, child.ExtraFiles = os.Stdin, os.Stderr, []*os.File{f}
	return child.Start()
}

// held keeps the descriptor open.
var held *os.File
