package fs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestOpenForWritingLocks(t *testing.T) {
	pairs(t, func(t *testing.T, c *cluster, i, j int) {
		for _, how := range []int{syscall.O_WRONLY, syscall.O_RDWR, syscall.O_WRONLY | syscall.O_APPEND,
			syscall.O_WRONLY | syscall.O_TRUNC, syscall.O_RDWR | syscall.O_CREAT} {
			name := fmt.Sprintf("open%d%d-%x", i, j, how)
			a := open(t, c.on(i, name), syscall.O_WRONLY|syscall.O_CREAT)
			_, err := syscall.Open(c.on(j, name), how|syscall.O_NONBLOCK, 0o666)
			check(t, "open that is not to wait", err, syscall.EAGAIN)
			fd, err := syscall.Open(c.on(j, name), syscall.O_RDONLY, 0)
			check(t, "open for reading", err, 0)
			check(t, "flock beside an open", flockNB(fd, sh), syscall.EWOULDBLOCK)
			syscall.Close(fd)

			got := make(chan error, 1)
			go func() {
				var fd int
				err := repeat(func() (err error) { fd, err = syscall.Open(c.on(j, name), how, 0o666); return })
				if err == nil {
					defer syscall.Close(fd)
					if buf := make([]byte, 10); how&syscall.O_TRUNC != 0 {
						if got, _ := os.ReadFile(c.on(j, name)); len(got) != 0 {
							err = fmt.Errorf("not truncated: %q", buf)
						}
					}
				}
				got <- err
			}()
			select {
			case err := <-got:
				t.Fatalf("open with %x did not wait: %v", how, err)
			case <-time.After(50 * time.Millisecond):
			}
			_, err = syscall.Write(a, []byte("holder's"))
			check(t, "the holder writes", err, 0)
			if data, _ := os.ReadFile(c.on(i, name)); string(data) != "holder's" {
				t.Errorf("a waiting open wiped it: %q", data)
			}
			syscall.Close(a)
			check(t, "open that waited", <-got, 0)
		}
	})
}

func TestExplicitCallsTakeOverFromTheOpen(t *testing.T) {
	pairs(t, func(t *testing.T, c *cluster, i, j int) {
		name := fmt.Sprint("take", i, j)
		a := open(t, c.on(i, name), syscall.O_RDWR|syscall.O_CREAT)
		b := open(t, c.on(j, name), syscall.O_RDONLY)
		check(t, "flock what the open has", flockNB(a, ex), 0)
		check(t, "share", flockNB(a, sh), 0)
		check(t, "another reader", flockNB(b, sh), 0)
		must(t, syscall.Flock(b, un))
		must(t, syscall.Flock(a, un))
		check(t, "given up while open", flockNB(b, ex), 0)
		syscall.Close(a)
		syscall.Close(b)
	})
}

// The fd form of flock(1): open for writing (with O_TRUNC), then lock.
func TestOpenFirstLockAfter(t *testing.T) {
	pairs(t, func(t *testing.T, c *cluster, i, j int) {
		name := fmt.Sprint("bare", i, j)
		const opening = syscall.O_WRONLY | syscall.O_CREAT | syscall.O_TRUNC
		a := open(t, c.on(i, name), opening)
		must(t, flockNB(a, ex))
		_, err := syscall.Write(a, []byte("holder"))
		must(t, err)

		b := open(t, c.on(j, name), opening) // returns at once
		check(t, "flock of the second", flockNB(b, ex), syscall.EWOULDBLOCK)
		if data, _ := os.ReadFile(c.on(i, name)); string(data) != "holder" {
			t.Errorf("the second wiped %q", data)
		}
		// Its write waits. Meanwhile the holder can write, unlink, and close.
		wrote := make(chan error, 1)
		go func() {
			wrote <- repeat(func() error { _, err := syscall.Write(b, []byte("second")); return err })
		}()
		select {
		case err := <-wrote:
			t.Fatalf("the write did not wait: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		step(t, "the holder writes", func() error { _, err := syscall.Write(a, []byte(" writes")); return err })
		step(t, "the holder truncates", func() error { return syscall.Ftruncate(a, 4) })
		step(t, "chmod", func() error { return os.Chmod(c.on(i, name), 0o600) })
		step(t, "a third opens, tries and gives up", func() error {
			fd, err := syscall.Open(c.on(i, name), opening, 0o666)
			if err != nil {
				return err
			}
			defer syscall.Close(fd)
			if err := flockNB(fd, ex); err != syscall.EWOULDBLOCK {
				return fmt.Errorf("flock of the third: %v", err)
			}
			return nil
		})
		step(t, "a link", func() error { return os.Link(c.on(i, name), c.on(i, name+"-link")) })
		step(t, "unlink", func() error { return os.Remove(c.on(i, name+"-link")) })
		step(t, "the holder lets go", func() error { return syscall.Close(a) })
		check(t, "the write that waited", <-wrote, 0)
		if data, _ := os.ReadFile(c.on(i, name)); string(data) != "second" {
			t.Errorf("after the put-off truncation and the write: %q", data)
		}
		third := open(t, c.on(i, name), syscall.O_RDONLY)
		check(t, "the writer has the lock", flockNB(third, sh), syscall.EWOULDBLOCK)
		syscall.Close(b)
		eventually(t, "released at close", func() bool { return flockNB(third, ex) == nil })
		syscall.Close(third)
	})
}

// step fails the test if f does not end soon: the kernel would be waiting for somebody.
func step(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		check(t, what, err, 0)
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: hangs", what)
	}
}

func TestBareHandleGetsItsTruncationWithTheLock(t *testing.T) {
	c := mount(t, 2)
	a := open(t, c.on(0, "x"), syscall.O_RDWR|syscall.O_CREAT)
	must(t, flockNB(a, ex))
	_, err := syscall.Write(a, []byte("data"))
	must(t, err)
	b := open(t, c.on(1, "x"), syscall.O_WRONLY|syscall.O_TRUNC)
	_, err = retried(func() (int, error) { return syscall.Write(nonblocking(t, b), []byte("x")) })
	check(t, "write that is not to wait", err, syscall.EAGAIN)
	must(t, syscall.Flock(a, sh))
	check(t, "share", flockNB(b, sh), 0)
	if data, _ := os.ReadFile(c.on(0, "x")); string(data) != "data" {
		t.Errorf("truncated with a read lock only: %q", data)
	}
	must(t, syscall.Flock(a, un))
	check(t, "write lock", flockNB(b, ex), 0)
	if data, _ := os.ReadFile(c.on(0, "x")); len(data) != 0 {
		t.Errorf("not truncated: %q", data)
	}
	_, err = syscall.Write(b, []byte("mine"))
	must(t, err)
	must(t, syscall.Flock(b, ex))
	if data, _ := os.ReadFile(c.on(0, "x")); string(data) != "mine" {
		t.Errorf("truncated twice: %q", data)
	}
	syscall.Close(a)
	syscall.Close(b)
}

func nonblocking(t *testing.T, fd int) int {
	t.Helper()
	must(t, syscall.SetNonblock(fd, true))
	return fd
}

func retried(f func() (int, error)) (n int, err error) {
	err = repeat(func() error { n, err = f(); return err })
	return n, err
}

func TestCreateExclusively(t *testing.T) {
	c := mount(t, 2)
	for round := range 20 {
		name := fmt.Sprint("excl", round)
		var wg sync.WaitGroup
		won := make(chan int, 16)
		for k := range 16 {
			wg.Go(func() {
				var fd int
				err := repeat(func() (err error) {
					fd, err = syscall.Open(c.on(k%2, name), syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY, 0o600)
					return
				})
				if err == nil {
					won <- fd
				} else if err != syscall.EEXIST {
					t.Errorf("open: %v", err)
				}
			})
		}
		wg.Wait()
		close(won)
		n := 0
		for fd := range won {
			n++
			syscall.Close(fd)
		}
		if n != 1 {
			t.Fatalf("%d winners", n)
		}
	}
}

func TestCreateTogether(t *testing.T) {
	c := mount(t, 2)
	for round := range 30 {
		name := fmt.Sprint("together", round)
		var wg sync.WaitGroup
		for k := range 8 {
			wg.Go(func() {
				flags := syscall.O_CREAT | syscall.O_RDONLY
				if k/2%2 == 1 {
					flags = syscall.O_CREAT | syscall.O_WRONLY | syscall.O_TRUNC
				}
				var fd int
				err := repeat(func() (err error) { fd, err = syscall.Open(c.on(k%2, name), flags, 0o666); return })
				if err != nil {
					t.Errorf("open of %s: %v", name, err)
					return
				}
				syscall.Close(fd)
			})
		}
		wg.Wait()
	}
}

// Create and unlink against each other: O_CREAT alone never fails.
func TestCreateAgainstUnlink(t *testing.T) {
	c := mount(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				path := c.on(k%2, "churn")
				fd, err := retried(func() (int, error) { return syscall.Open(path, syscall.O_CREAT|syscall.O_WRONLY, 0o666) })
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				os.Remove(path)
				syscall.Close(fd)
			}
		})
	}
	wg.Wait()
}

func TestUnlinkedHeldLockStays(t *testing.T) {
	pairs(t, func(t *testing.T, c *cluster, i, j int) {
		name := fmt.Sprint("unlinked", i, j)
		a := open(t, c.on(i, name), syscall.O_WRONLY|syscall.O_CREAT)
		must(t, os.Remove(c.on(i, name)))
		for _, flags := range []int{syscall.O_CREAT, syscall.O_CREAT | syscall.O_EXCL} {
			got := make(chan error, 1)
			go func() {
				fd, err := retried(func() (int, error) { return syscall.Open(c.on(j, name), flags|syscall.O_WRONLY, 0o666) })
				if err == nil {
					err = syscall.Close(fd)
				}
				got <- err
			}()
			select {
			case err := <-got:
				t.Fatalf("the newcomer did not wait: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			if flags&syscall.O_EXCL == 0 {
				step(t, "another name in the directory meanwhile", func() error {
					return os.WriteFile(c.on(j, name+"-other"), nil, 0o600)
				})
			}
			must(t, syscall.Close(a))
			check(t, "the newcomer", <-got, 0)
			a = open(t, c.on(i, name), syscall.O_WRONLY|syscall.O_CREAT)
			must(t, os.Remove(c.on(i, name)))
		}
		syscall.Close(a)
	})
}

func TestOpenThatWaitsForItself(t *testing.T) {
	c := mount(t, 2)
	script := `import os, sys, errno
a = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
try:
    os.open(sys.argv[1], os.O_WRONLY)
except OSError as e:
    print(errno.errorcode[e.errno])`
	out, err := exec.Command("timeout", "10", "python3", "-c", script, c.on(0, "x")).CombinedOutput()
	if e := strings.TrimSpace(string(out)); e != "EDEADLK" && e != "EDEADLOCK" {
		t.Errorf("%q (%v)", out, err)
	}
}

// close(2) returns before the lock is released; the next open waits for that and is no deadlock.
func TestOpenAgainAndAgain(t *testing.T) {
	c := mount(t, 1)
	script := `import os, sys
for i in range(200):
    os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    os.close(os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK))
    if i % 10 == 0:
        os.remove(sys.argv[1])`
	if out, err := exec.Command("timeout", "60", "python3", "-c", script, c.on(0, "x")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
