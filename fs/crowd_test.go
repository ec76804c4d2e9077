package fs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// trying never waits, so among waiters it may never have its turn.
const trying = "fd form, not waiting"

// doors are ways to get the write lock of a name: each returns a descriptor
// whose close lets go.
var doors = map[string]func(path string) (int, error){
	"flock, read only": func(path string) (int, error) {
		return lockWith(path, syscall.O_RDONLY|syscall.O_CREAT, func(fd int) error { return syscall.Flock(fd, ex) })
	},
	"flock, read-write": func(path string) (int, error) {
		return lockWith(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_TRUNC, func(fd int) error { return syscall.Flock(fd, ex) })
	},
	trying: func(path string) (int, error) {
		return lockWith(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC, func(fd int) error { return flockNB(fd, ex) })
	},
	"ofd, appending": func(path string) (int, error) {
		return lockWith(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_APPEND, func(fd int) error {
			return fcntl(fd, unix.F_OFD_SETLKW, unix.F_WRLCK, 0, 0)
		})
	},
	// Where the open is let through, for the holder locks by calls, the write waits.
	"open and write": func(path string) (int, error) {
		return lockWith(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC, func(fd int) error {
			_, err := syscall.Write(fd, []byte("x"))
			return err
		})
	},
}

func lockWith(path string, flags int, lock func(fd int) error) (int, error) {
	fd, err := retried(func() (int, error) { return syscall.Open(path, flags|syscall.O_CLOEXEC, 0o666) })
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	if err := repeat(func() error { return lock(fd) }); err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Through all doors at once, on three nodes, while the lock file is unlinked at
// random: never two inside, and nobody is stuck.
func TestCrowdThroughAllDoors(t *testing.T) {
	c := mount(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for door, lock := range doors {
		for node := range 3 {
			wg.Go(func() {
				path, had := c.on(node, "crowd"), 0
				for ctx.Err() == nil {
					fd, err := lock(path)
					if err == syscall.EWOULDBLOCK {
						time.Sleep(time.Millisecond)
						continue
					}
					if err != nil {
						t.Errorf("%s on node %d: %v", door, node, err)
						return
					}
					if n := inside.Add(1); n > most.Load() {
						most.Store(n)
					}
					if rand.IntN(4) == 0 {
						os.Remove(path)
					}
					had++
					inside.Add(-1)
					syscall.Close(fd)
				}
				if had == 0 && door != trying {
					t.Errorf("%s on node %d: never", door, node)
				}
				t.Logf("%s on node %d: %d times", door, node, had)
			})
		}
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d inside at once", most.Load())
	}
	if fd, err := lockWith(c.on(0, "crowd"), syscall.O_RDONLY|syscall.O_CREAT, func(fd int) error { return nil }); err == nil {
		eventually(t, "free in the end", func() bool { return flockNB(fd, ex) == nil })
		syscall.Close(fd)
	}
}
