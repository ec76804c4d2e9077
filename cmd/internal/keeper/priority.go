package keeper

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Nice values of the two processes (setpriority(2)). Both need little of the processor, but the keeper must
// have it the moment a lease ends, and the server when a renewal is due, however busy the machine is.
const (
	keeperNice = -20
	serverNice = -15
)

// raise gives this process a nice value, all threads of it; those that come later inherit it. A
// plain user may not, without a limit that allows it: then all stays as it is, which is what the error is for.
func raise(nice int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("raise the priority: %w", err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			return fmt.Errorf("raise the priority: %w", err)
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && err != unix.ESRCH {
			return fmt.Errorf("raise the priority of thread %d: %w", tid, err)
		}
	}
	return nil
}
