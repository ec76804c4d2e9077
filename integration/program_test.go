package integration

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockfs/backends/testserver"
)

// process is a program as it is.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  testserver.Output
	done chan struct{} // closed when it has ended
}

// start starts a program in a process group of its own, which ends with the test.
func start(t testing.TB, argv ...string) *process {
	t.Helper()
	return startWith(t, nil, argv...)
}

func startWith(t testing.TB, env []string, argv ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "GORACE=atexit_sleep_ms=0"), env...)
	p.cmd.Dir = os.TempDir()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.WaitDelay = patience
	var err error
	p.in, err = p.cmd.StdinPipe()
	must(t, err)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("this test needs %s: install Debian's package %s (%v)", argv[0], packageOf(argv[0]), err)
	}
	go func() {
		_ = p.cmd.Wait() // the state says it all
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	})
	return p
}

// packageOf names the Debian package that has a program.
func packageOf(program string) string {
	name := program[strings.LastIndexByte(program, '/')+1:]
	if of, ok := map[string]string{
		"flock": "util-linux", "setlock": "daemontools", "dotlockfile": "liblockfile-bin", "lockfile": "procmail",
		"lockfile-create": "lockfile-progs", "lockfile-remove": "lockfile-progs", "java": "default-jdk-headless",
	}[name]; ok {
		return of
	}
	return name
}

// ended waits for the program's end and returns its exit code.
func (p *process) ended() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("%q has not ended after %v; it says: %s", p.cmd.Args, patience, p.out.String())
		return -1
	}
}

// code is ended for programs that must end so.
func (p *process) code(want int) {
	p.t.Helper()
	if code := p.ended(); code != want {
		p.t.Fatalf("%q ended with %d, want %d; it says: %s", p.cmd.Args, code, want, p.out.String())
	}
}

// held waits until the program says that it has its lock.
func (p *process) held() *process {
	p.t.Helper()
	eventually(p.t, strings.Join(p.cmd.Args[:1], " ")+" has its lock", func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%q ended: %v; it says: %s", p.cmd.Args, p.cmd.ProcessState, p.out.String())
		default:
		}
		return strings.Contains(p.out.String(), "held\n")
	})
	return p
}

// release makes the program let go and end.
func (p *process) release() {
	p.t.Helper()
	_ = p.in.Close() // what it waits for; if it has ended, code says so
	p.code(0)
}
