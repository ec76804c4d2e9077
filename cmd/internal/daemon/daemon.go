// Package daemon puts a program into the background, and tells the one who
// started it how that went.
//
// Its one idea: the program starts itself again, in a new session, and the
// first process (the starter) stays until the second (the daemon) says on a
// pipe that it is ready, or why not, or dies. So the starter's exit code is
// the truth, and a daemon that can't start leaves nothing behind. Nothing is
// inherited but standard error until the daemon is ready: no terminal, no
// descriptor (a lock file held open by a shell, say).
//
// A program that is to consist of a keeper and a server starts the keeper here;
// the pipe can be handed on, for ready is whoever writes to it.
package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EnvReady marks the daemon and names the descriptor of the pipe.
const EnvReady = "LOCKFS_READY_FD"

// What the daemon writes: one of these bytes, then, behind failed, the message.
const (
	ready  = 'R'
	failed = 'E'
)

// FailedError is the reason that the daemon gave why it could not start.
type FailedError struct {
	// Text is the daemon's error.
	Text string
	// ExitCode is what the daemon exited with: a starter exits with the same.
	ExitCode int
}

func (e *FailedError) Error() string { return e.Text }

// Options say how to start.
type Options struct {
	// Args is the command line, os.Args by default.
	Args []string
	// Stop are the signals at which the starter gives up: it passes SIGTERM
	// on and waits for the daemon to clean up. The default is interrupt, terminate and hang-up.
	Stop []os.Signal
	// Patience bounds that wait; then the daemon is killed. The default is 15 s.
	Patience time.Duration
}

// Start starts this program again in the background and returns nil once it
// is ready. An error means that no daemon is running.
func Start(o Options) error {
	if o.Args == nil {
		o.Args = os.Args
	}
	if o.Stop == nil {
		o.Stop = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
	}
	if o.Patience == 0 {
		o.Patience = 15 * time.Second
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, o.Stop...)
	defer signal.Stop(stop)

	command, answer, err := spawn(o.Args)
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	defer answer.Close()
	read := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(answer) // whatever the error: what came is what counts
		read <- string(all)
	}()
	select {
	case message := <-read:
		return outcome(command, message)
	case s := <-stop:
		// Ready or not, it goes: a mount whose starter reports failure must not stay.
		_ = command.Process.Signal(syscall.SIGTERM) // it may be gone already
		kill := time.AfterFunc(o.Patience, func() { _ = command.Process.Kill() })
		defer kill.Stop()
		<-read // ends with the daemon at the latest
		_ = command.Wait()
		return fmt.Errorf("given up at the signal %q, nothing is left running", s)
	}
}

// spawn starts the daemon; answer is the pipe from it.
func spawn(args []string) (command *exec.Cmd, answer *os.File, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	answer, theirs, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	closeOnExec()
	const firstExtra = 3
	command = &exec.Cmd{
		Path:        program,
		Args:        args,
		Env:         append(os.Environ(), EnvReady+"="+strconv.Itoa(firstExtra)),
		Stderr:      os.Stderr, // until it is ready
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := command.Start(); err != nil {
		_ = answer.Close()
		return nil, nil, err
	}
	return command, answer, nil
}

// closeOnExec keeps from the daemon what this process inherited itself. Go's
// own descriptors are marked so already.
func closeOnExec() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // no /proc: rather a descriptor too many than no mount
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// outcome turns what the daemon said, the pipe being at its end, into an error.
func outcome(command *exec.Cmd, message string) error {
	if strings.HasPrefix(message, string(ready)) {
		// The daemon is on its own now; this process is about to end.
		_ = command.Process.Release()
		return nil
	}
	err := command.Wait()
	if text, ok := strings.CutPrefix(message, string(failed)); ok {
		return &FailedError{text, max(1, command.ProcessState.ExitCode())}
	}
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("the background process ended before it was ready: %w; run it with --foreground to see more", err)
}

// Child is the daemon's end. Its methods are for one goroutine.
type Child struct{ pipe *os.File }

// Inherited returns the daemon's end of the pipe, and false where this
// process was not started by Start. To be called once, early: what this
// process starts itself must not take itself for the daemon.
func Inherited() (*Child, bool) {
	fd, err := strconv.Atoi(os.Getenv(EnvReady))
	_ = os.Unsetenv(EnvReady)
	if err != nil || fd < 3 {
		return nil, false
	}
	unix.CloseOnExec(fd)
	pipe := os.NewFile(uintptr(fd), "ready")
	if info, err := pipe.Stat(); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return nil, false // somebody else's variable
	}
	return &Child{pipe}, true
}

// Ready tells the starter that all is well, after having let go of its
// standard error and its directory. An error means that the starter is gone:
// nobody wants the daemon any more, and it should go, too.
func (c *Child) Ready() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("let go of standard error: %w", err)
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("let go of standard error: %w", err)
		}
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("let go of the directory: %w", err)
	}
	return c.Announce()
}

// Announce tells the starter that all is well, and lets go of nothing.
func (c *Child) Announce() error {
	_, err := c.pipe.Write([]byte{ready})
	if closeErr := c.pipe.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("tell whoever started this: %w", err)
	}
	return nil
}

// Answer reads what a Child says on the other end of its pipe: nil where it is ready, a *FailedError
// where it said why not, io.ErrUnexpectedEOF where it ended without a word.
func Answer(pipe io.Reader) error {
	all, _ := io.ReadAll(pipe) // whatever the error: what came is what counts
	message := string(all)
	if strings.HasPrefix(message, string(ready)) {
		return nil
	}
	if text, ok := strings.CutPrefix(message, string(failed)); ok {
		return &FailedError{Text: text, ExitCode: 1}
	}
	return fmt.Errorf("it ended before it was ready: %w", io.ErrUnexpectedEOF)
}

// Fail tells the starter why the daemon can't run; the daemon is to exit next.
func (c *Child) Fail(reason error) {
	_, _ = c.pipe.WriteString(string(failed) + reason.Error()) // nobody left to tell
	_ = c.pipe.Close()
}
