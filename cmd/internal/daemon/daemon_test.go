package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envRole makes the test program a starter whose daemon does as the role says.
const envRole = "LOCKFS_TEST_ROLE"

func TestMain(m *testing.M) {
	role, dir, _ := strings.Cut(os.Getenv(envRole), ":")
	if role == "" {
		os.Exit(m.Run())
	}
	if child, ok := Inherited(); ok {
		os.Exit(daemon(child, role, dir))
	}
	if err := Start(Options{Patience: 2 * time.Second}); err != nil {
		fmt.Println(err)
		var failed *FailedError
		if errors.As(err, &failed) {
			os.Exit(failed.ExitCode)
		}
		os.Exit(1)
	}
}

func note(dir, name, text string) {
	tmp := filepath.Join(dir, "."+name)
	if os.WriteFile(tmp, []byte(text), 0o600) != nil || os.Rename(tmp, filepath.Join(dir, name)) != nil {
		os.Exit(9)
	}
}

func daemon(child *Child, role, dir string) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	note(dir, "pid", strconv.Itoa(os.Getpid()))
	switch role {
	case "fail":
		child.Fail(errors.New("no luck: try again"))
		return 2
	case "die":
		fmt.Fprintln(os.Stderr, "last words")
		return 3
	case "slow":
		<-term
		note(dir, "cleaned", "")
		child.Fail(errors.New("told to stop"))
		return 1
	case "deaf":
		select {}
	case "orphan":
		// Not until its parent is process 1: the kernel says so before the last thread of the starter has closed its files.
		for exists(dir) && !exists(filepath.Join(dir, "go")) {
			time.Sleep(time.Millisecond)
		}
		note(dir, "orphan", fmt.Sprint(child.Ready()))
		return 0
	}
	if err := child.Ready(); err != nil {
		return 1
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	var open []string
	for _, fd := range fds {
		target, _ := os.Readlink(fd)
		open = append(open, target)
	}
	cwd, _ := os.Getwd()
	sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	note(dir, "state", fmt.Sprintf("cwd=%s leader=%v env=%q fds=%q", cwd, int(sid) == os.Getpid(), os.Getenv(EnvReady), open))
	<-term
	return 0
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// wait returns the contents of a file once it's there.
func wait(t *testing.T, path string) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if data, err := os.ReadFile(path); err == nil {
			return string(data)
		}
	}
	t.Fatalf("%s does not come", path)
	return ""
}

func pid(t *testing.T, dir string) int {
	t.Helper()
	n, err := strconv.Atoi(wait(t, filepath.Join(dir, "pid")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// gone waits until the process has ended (a zombie has).
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
	t.Fatalf("process %d is still there", pid)
}

func starter(t *testing.T, role string) (command *exec.Cmd, dir string, out *bytes.Buffer) {
	t.Helper()
	dir, out = t.TempDir(), &bytes.Buffer{}
	command = exec.Command(os.Args[0])
	command.Env = append(os.Environ(), envRole+"="+role+":"+dir, "GORACE=atexit_sleep_ms=0")
	command.Stdout, command.Stderr = out, out
	return command, dir, out
}

// TestReady: the starter is done, its output is closed, and the daemon has
// let go of everything it could hold by accident.
func TestReady(t *testing.T) {
	command, dir, out := starter(t, "ready")
	held, err := os.Create(filepath.Join(dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	command.ExtraFiles = []*os.File{held}
	command.Dir = dir
	// Run waits for the end of the output too: a daemon that kept it open would hang here.
	if err := command.Run(); err != nil || out.Len() > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	state := wait(t, filepath.Join(dir, "state"))
	if !strings.HasPrefix(state, `cwd=/ leader=true env="" `) || strings.Contains(state, dir) || strings.Contains(state, "pipe:") {
		t.Errorf("the daemon's state: %s", state)
	}
	daemon := pid(t, dir)
	if err := syscall.Kill(daemon, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	gone(t, daemon)
}

func TestFail(t *testing.T) {
	command, dir, out := starter(t, "fail")
	var exit *exec.ExitError
	if err := command.Run(); !errors.As(err, &exit) || exit.ExitCode() != 2 || out.String() != "no luck: try again\n" {
		t.Errorf("%v: %q", err, out)
	}
	gone(t, pid(t, dir))
}

func TestDies(t *testing.T) {
	command, dir, out := starter(t, "die")
	err := command.Run()
	if err == nil || !strings.Contains(out.String(), "last words\n") || !strings.Contains(out.String(), "ended before it was ready: exit status 3;") {
		t.Errorf("%v: %s", err, out)
	}
	gone(t, pid(t, dir))
}

func TestStarterInterrupted(t *testing.T) {
	for _, role := range []string{"slow", "deaf"} {
		t.Run(role, func(t *testing.T) {
			command, dir, out := starter(t, role)
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			daemon := pid(t, dir)
			if err := command.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if err := command.Wait(); err == nil || !strings.Contains(out.String(), "nothing is left running") {
				t.Errorf("%v: %s", err, out)
			}
			gone(t, daemon)
			if role == "slow" && !exists(filepath.Join(dir, "cleaned")) {
				t.Error("the daemon could not clean up")
			}
		})
	}
}

// TestStarterKilled: a daemon that becomes ready for nobody is told so.
func TestStarterKilled(t *testing.T) {
	command, dir, _ := starter(t, "orphan")
	command.Stdout, command.Stderr = io.Discard, nil
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	daemon := pid(t, dir)
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	note(dir, "go", "")
	if got := wait(t, filepath.Join(dir, "orphan")); !strings.Contains(got, "broken pipe") {
		t.Errorf("Ready returned %s", got)
	}
	gone(t, daemon)
}
