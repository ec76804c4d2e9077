package keeper

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The keeper has to have a processor the moment a lease ends, however busy the machine is. So it runs ahead of all
// that is not real-time itself (sched(7)); it sleeps nearly all the time. The server needs one when a renewal is due, but works
// for whoever asks, so it only gets a greater share.
var (
	keeperPriority = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
	serverPriority = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -15}
)

// run sets how this process is scheduled: all threads that it has; those that come later inherit it, and so do
// child processes. A plain user may not, without a limit that allows it: then all stays as it is, which is what the error is for.
func run(priority unix.SchedAttr) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("set the priority: %w", err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			return fmt.Errorf("set the priority: %w", err)
		}
		if err := unix.SchedSetAttr(tid, &priority, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("set the priority of thread %d: %w", tid, err)
		}
	}
	return nil
}
