package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() { works["count"] = count }

// crowdTime is how long a crowd runs.
const crowdTime = 3 * time.Second

// count is a process of a crowd: "count HOW SECONDS PATH". It moves a counter that only a holder of the lock
// may move, by reading, adding one and writing, again and again, and prints how often it did.
func count(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: HOW SECONDS PATH")
	}
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	done := 0
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); done++ {
		if err := countOnce(args[0], args[2]); err != nil {
			return fmt.Errorf("round %d by %s: %w", done, args[0], err)
		}
	}
	fmt.Println(done)
	return nil
}

// countOnce moves the counter once, under a lock taken as how says.
func countOnce(how, path string) error {
	fd, err := again(func() (int, error) { return syscall.Open(path, rdwr|syscall.O_CLOEXEC, 0) })
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	switch how {
	case "flock":
		_, err = again(func() (int, error) { return 0, syscall.Flock(fd, ex) })
	case "fcntl":
		_, err = again(func() (int, error) {
			return 0, syscall.FcntlFlock(uintptr(fd), setlkw, &syscall.Flock_t{Type: wr})
		})
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return addOne(f)
}

// again repeats what a signal to a Go program interrupted.
func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

func addOne(f *os.File) error {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0) // short at the file's end
	value, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return err
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", value+1), 0)
	return err
}

// crowd runs so many processes, in turn on each node, and holds the counter to the sum of what they did.
func crowd(t *testing.T, e *env, processes int, hows ...string) {
	t.Helper()
	must(t, os.WriteFile(e.on(0, "counter"), []byte("0\n"), 0o666))
	var all []*process
	for i := range processes {
		all = append(all, startWith(t, []string{workEnv + "=count"}, os.Args[0], hows[i%len(hows)],
			fmt.Sprint(int(crowdTime/time.Second)), e.on(i%len(e.nodes), "counter")))
	}
	sum, least := 0, 1<<62
	for _, p := range all {
		p.code(0)
		n, err := strconv.Atoi(strings.TrimSpace(p.out.String()))
		must(t, err)
		sum += n
		least = min(least, n)
	}
	data, err := os.ReadFile(e.on(0, "counter"))
	must(t, err)
	if got := strings.TrimSpace(string(data)); got != strconv.Itoa(sum) {
		t.Errorf("the counter says %s after %d rounds", got, sum)
	}
	t.Logf("%d processes on %d nodes: %d locks, the least served process %d", processes, len(e.nodes), sum, least)
	if least == 0 {
		t.Error("a process was not served at all")
	}
	e.empty(t, patience)
}

// 16 processes on four nodes, that open first and lock then.
func TestCounter(t *testing.T) {
	oneByOne(t, func(t *testing.T, e *env) {
		e.mount()
		e.mount()
		crowd(t, e, 16, "flock", "fcntl", "fcntl", "flock")
	})
}

// The open is the lock, among those for whom it is.
func TestCounterOnFiveNodes(t *testing.T) {
	oneByOne(t, func(t *testing.T, e *env) {
		for range 3 {
			e.mount()
		}
		crowd(t, e, 10, "open")
	})
}

// By all doors, with lock_on_open: always. (With auto, an open beside explicit locks returns at once,
// and what is read through it before the first write is read without a lock.)
func TestCounterByAllDoors(t *testing.T) {
	const always = "lock_on_open: always"
	oneByOne(t, func(t *testing.T, e *env) {
		e.mount(always)
		crowd(t, e, 12, "open", "flock", "fcntl", "open")
	}, always)
}

// lockInARow locks again and again, by one of three doors, and dies any time. (Perl starts soonest.)
const lockInARow = `
use Fcntl qw(:DEFAULT :flock :seek);
my ($path, $door) = @ARGV;
while (1) {
	sysopen(my $f, $path, O_RDWR) or die "open: $!";
	if ($door == 0) { flock($f, LOCK_EX) or die "flock: $!" }
	my $all = pack("s s x4 q q i x4", F_WRLCK, SEEK_SET, 0, 0, 0);
	if ($door == 1) { fcntl($f, F_SETLKW, $all) or die "fcntl: $!" }
	defined(syswrite($f, "x")) or die "write: $!";
	close($f) or die "close: $!";
}`

// Holders and waiters are killed at random; after that every lock is free and nothing is left in the back end.
func TestKilledAtRandom(t *testing.T) {
	forEachBackend(t, func(t *testing.T, e *env) {
		const seed = 7
		random := rand.New(rand.NewPCG(seed, seed))
		names := []string{"a", "b"}
		for _, name := range names {
			must(t, os.WriteFile(e.on(0, name), []byte("0\n"), 0o666))
		}
		begin := func() *process {
			return start(t, "perl", "-e", lockInARow, e.on(random.IntN(len(e.nodes)), names[random.IntN(len(names))]), fmt.Sprint(random.IntN(3)))
		}
		all := make([]*process, 8)
		for i := range all {
			all[i] = begin()
		}
		kills := 0
		for end := time.Now().Add(crowdTime); time.Now().Before(end); kills++ {
			i := random.IntN(len(all))
			eventually(t, "it is at work", func() bool { return inFUSE(all[i].cmd.Process.Pid) || !running(all[i]) })
			if !running(all[i]) {
				t.Fatalf("a process ended, it says: %s", all[i].out.String())
			}
			must(t, all[i].cmd.Process.Kill())
			<-all[i].done
			all[i] = begin()
		}
		for _, p := range all {
			_ = syscall.Kill(p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
			<-p.done
			if out := p.out.String(); out != "" {
				t.Errorf("a process says: %s", out)
			}
		}
		t.Logf("%d killed", kills)
		e.empty(t, patience)
		for node := range e.nodes {
			c := e.client(t, node)
			for _, name := range names {
				x := c.open(name, rdonly)
				want(t, "lock after all that", x.flock(ex|nb), 0)
				want(t, "unlock", x.flock(un), 0)
			}
		}
	})
}

func running(p *process) bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
