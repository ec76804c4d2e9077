package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"lockfs/backends/testserver"
)

// program is the lockfs command that all tests run.
var program string

func TestMain(m *testing.M) {
	if work := os.Getenv(workEnv); work != "" {
		os.Exit(workMain(work))
	}
	os.Exit(run(m))
}

// parallel is how many tests run at once: they wait more than they work.
const parallel = "5"

func run(m *testing.M) int {
	flag.Parse()
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "lockfs-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "lockfs")
	if err := build(program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.end()
	return m.Run()
}

func build(to string) error {
	args := []string{"build", "-o", to}
	if raced {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "lockfs/cmd/lockfs")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building lockfs: %w\n%s", err, out)
	}
	return nil
}

// suite stands for the whole run where a server wants to know whose it is:
// servers are started for the first test that needs them, and end with the last.
type suite struct {
	testing.TB // nil: only what follows may be called
	mu         sync.Mutex
	cleanups   []func()
}

var shared suite

// suiteFailure is what a server that could not be started panics with.
type suiteFailure string

func (s *suite) Helper() {}

func (s *suite) Fatal(args ...any) { panic(suiteFailure(fmt.Sprint(args...))) }

func (s *suite) Fatalf(format string, args ...any) { panic(suiteFailure(fmt.Sprintf(format, args...))) }

func (s *suite) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *suite) TempDir() string {
	dir, err := os.MkdirTemp("", "lockfs-server-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *suite) end() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
}

// once starts a server for the first who asks, and fails all who ask where that fails.
func once[S any](start func(testing.TB) S) func(testing.TB) S {
	get := sync.OnceValues(func() (server S, failure any) {
		defer func() { failure = recover() }()
		return start(&shared), nil
	})
	return func(t testing.TB) S {
		t.Helper()
		server, failure := get()
		if failure != nil {
			t.Fatal(failure)
		}
		return server
	}
}

var (
	redisServer     = once(func(t testing.TB) *testserver.RedisServer { return testserver.Redis(t) })
	zooKeeperServer = once(testserver.ZooKeeper)
)
