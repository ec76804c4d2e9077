package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// idioms are the programs of docs/idioms, which the README shows: how each is
// run, which name it locks and what it says when it has the lock.
var idioms = []struct {
	file, name, says string
	busy             int  // its exit code where it does not wait; 0: it waits
	tries            bool // it waits by trying again and again
	run              func(t *testing.T, path string) []string
}{
	{"run-once.sh", "etl/nightly", "the job runs", 75, false, script("sh")},
	{"wait-and-section.sh", "report", "only one node is here", 0, false, script("sh")},
	{"readers.sh", "catalogue", "reading", 0, false, script("sh")},
	{"open_for_writing.py", "checkpoint", "only one node is here", 0, false, script("/usr/bin/python3")},
	{"flock_timeout.py", "checkpoint", "only one node is here", 0, false, script("/usr/bin/python3")},
	{"with_filelock.py", "index", "only one node is here", 0, true, script("/usr/bin/python3")},
	{"Section.java", "ledger", "only one node is here", 0, false, script("java")},
	{"section/main.go", "shard-7", "only one node is here", 0, false, compiled("go", "build", "-o")},
	{"section.c", "records", "only one node is in this record", 0, false, compiled("gcc", "-Wall", "-Werror", "-o")},
	{"token.sh", "etl/nightly", "writing with token ", 0, false, script("sh")},
}

func script(interpreter string) func(*testing.T, string) []string {
	return func(_ *testing.T, path string) []string { return []string{interpreter, path} }
}

func compiled(argv ...string) func(*testing.T, string) []string {
	return func(t *testing.T, path string) []string {
		t.Helper()
		program := path + ".out"
		build := exec.Command(argv[0], append(argv[1:], program, path)...)
		if module, err := filepath.Abs(".."); err == nil {
			build.Dir = module
		}
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", path, err, out)
		}
		return []string{program}
	}
}

// TestIdioms runs each idiom on one node while the lock is held on another:
// it has to wait, or to say that it can't have it, and to go through when it is free.
func TestIdioms(t *testing.T) {
	forEachBackend(t, func(t *testing.T, e *env) {
		must(t, os.Mkdir(e.on(0, "etl"), 0o777))
		for _, idiom := range idioms {
			t.Run(idiom.file, func(t *testing.T) {
				argv := idiom.run(t, idiomFor(t, idiom.file, e.nodes[1].dir))
				holder := start(t, "flock", e.on(0, idiom.name), "sh", "-c", "echo held; cat >/dev/null").held()
				p := start(t, argv...)
				if idiom.busy != 0 {
					p.code(idiom.busy)
					holder.release()
					e.queued(t, idiom.name, 0) // a lock that ends with a close is there for a moment after it
					p = start(t, argv...)
				} else {
					if idiom.tries {
						eventually(t, idiom.file+" tries", func() bool { return hasOpen(p.cmd.Process.Pid, e.on(1, idiom.name)) })
					} else {
						e.queued(t, idiom.name, 2)
					}
					if strings.Contains(p.out.String(), idiom.says) {
						t.Errorf("it went ahead while another node had the lock: %s", p.out.String())
					}
					holder.release()
				}
				p.code(0)
				if !strings.Contains(p.out.String(), idiom.says) {
					t.Errorf("it says %q, not %q", p.out.String(), idiom.says)
				}
			})
		}
	})
}

// hasOpen reports whether a process has a file open.
func hasOpen(pid int, path string) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	return slices.ContainsFunc(fds, func(fd string) bool {
		target, err := os.Readlink(fd)
		return err == nil && target == path
	})
}

// idiomFor writes an idiom down for a mount point, and returns the path.
func idiomFor(t *testing.T, file, mountpoint string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "idioms", file))
	must(t, err)
	path := filepath.Join(t.TempDir(), filepath.Base(file))
	must(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/mnt/locks", mountpoint)), 0o600))
	return path
}

// TestReadmeShowsTheIdioms: what the README shows is what is tested.
func TestReadmeShowsTheIdioms(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	must(t, err)
	for _, idiom := range idioms {
		text, err := os.ReadFile(filepath.Join("..", "docs", "idioms", idiom.file))
		must(t, err)
		if !strings.Contains(string(readme), "\n"+string(text)+"```\n") {
			t.Errorf("README.md does not show docs/idioms/%s as it is", idiom.file)
		}
	}
}

// TestDemo runs the README's first command.
func TestDemo(t *testing.T) {
	script, err := filepath.Abs("../scripts/demo.sh")
	must(t, err)
	demo := start(t, script)
	demo.code(0)
	for _, line := range []string{"a: has it", "b: tried without waiting", "b: waits", "a: lets go", "b: had its turn"} {
		if !strings.Contains(demo.out.String(), line) {
			t.Errorf("the demonstration does not say %q:\n%s", line, demo.out.String())
		}
	}
}

// TestReadmeConfiguration: lockfs takes the configuration that the README shows.
func TestReadmeConfiguration(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	must(t, err)
	_, rest, found := strings.Cut(string(readme), "```yaml\n")
	text, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("README.md shows no configuration")
	}
	dir := t.TempDir()
	secret, path := filepath.Join(dir, "password"), filepath.Join(dir, "lockfs.yml")
	must(t, os.WriteFile(secret, []byte("secret\n"), 0o600))
	must(t, os.WriteFile(path, []byte(strings.Replace(text, "/etc/lockfs.password", secret, 1)), 0o600))
	check := start(t, program, "check", "-c", path)
	check.ended() // the servers are nobody's
	if out := check.out.String(); !strings.Contains(out, "configuration: "+path+": good\n") {
		t.Errorf("lockfs check says: %s", out)
	}
}
