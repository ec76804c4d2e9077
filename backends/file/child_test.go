package file

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/config"
)

// childVariable tells the test binary to be a node of its own instead: a process that can be killed.
const childVariable = "LOCKFS_FILE_TEST_CHILD"

// task is what a child does: it acquires, says so, and waits to be killed or for its input's end.
type task struct {
	Do        string // which method to run, see child
	Dir, Name string
	Lock      backends.Lock
	Held      []backends.Lock
}

// child runs a task and prints how it went.
func child(text string) {
	var k task
	err := json.Unmarshal([]byte(text), &k)
	if err == nil {
		switch k.Do {
		case "churn":
			err = k.churn()
		case "count":
			err = k.count()
		case "full":
			err = k.fullDisk()
		default:
			err = k.hold()
		}
	}
	if err != nil {
		fmt.Println("error:", err)
	}
}

func (k task) open() (*Backend, backends.Session, error) {
	b, err := Open(context.Background(), config.File{Path: k.Dir}, "Test cluster/1", nil)
	if err != nil {
		return nil, nil, err
	}
	s, err := b.Open(context.Background(), backends.SessionOptions{Node: "child", TTL: 10 * time.Second})
	return b, s, err
}

// hold prints "queued" when its request stands in the queue, then "granted", and "closed" at its input's end.
func (k task) hold() error {
	_, s, err := k.open()
	if err != nil {
		return err
	}
	_, err = s.Acquire(context.Background(), k.Name, backends.Request{Lock: k.Lock, Held: k.Held, Wait: true,
		Queued: func() { fmt.Println("queued") }})
	if err != nil {
		return err
	}
	fmt.Println("granted")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent closes it
	if err := s.Close(context.Background()); err != nil {
		return err
	}
	fmt.Println("closed")
	return nil
}

const counts = 150

// count adds to a number in a file that only the lock's holder may touch.
func (k task) count() error {
	_, s, err := k.open()
	if err != nil {
		return err
	}
	path := k.Dir + "/counter"
	for range counts {
		c, err := s.Acquire(context.Background(), k.Name, backends.Request{Lock: writeAll, Wait: true})
		if err != nil {
			return err
		}
		n := 0
		if text, err := os.ReadFile(path); err == nil {
			_, _ = fmt.Sscan(string(text), &n) // the sum at the end tells
		}
		if err := os.WriteFile(path, fmt.Append(nil, n+1), 0o600); err != nil {
			return err
		}
		if _, err := s.Change(context.Background(), k.Name, []backends.Change{{ID: c.ID}}); err != nil {
			return err
		}
	}
	if err := s.Close(context.Background()); err != nil {
		return err
	}
	fmt.Println("counted")
	return nil
}

// churn locks and changes names until it is killed, in several goroutines.
func (k task) churn() error {
	b, s, err := k.open()
	if err != nil {
		return err
	}
	fmt.Println("churning")
	errs := make(chan error, 4)
	go func() { errs <- churnLocks(s, k.Name) }()
	go func() { errs <- churnLocks(s, k.Name) }()
	go func() { errs <- churnNames(b, "f") }()
	go func() { errs <- churnNames(b, "g") }()
	return <-errs
}

func churnLocks(s backends.Session, name string) error {
	for {
		c, err := s.Acquire(context.Background(), name, backends.Request{Lock: writeAll, Wait: true})
		if err != nil {
			return err
		}
		part := backends.Keep{Lock: backends.Lock{Range: backends.Range{First: 1, Last: 2}, Mode: backends.Read}}
		left, err := s.Change(context.Background(), name, []backends.Change{{ID: c.ID, To: []backends.Keep{part}}})
		if err != nil {
			return err
		}
		if _, err := s.Change(context.Background(), name, []backends.Change{{ID: left[0].ID}}); err != nil {
			return err
		}
	}
}

func churnNames(b *Backend, name string) error {
	ctx := context.Background()
	for {
		_, err := b.Create(ctx, name, backends.Info{Mode: 0o100644})
		if err == nil || errors.Is(err, backends.ErrExist) {
			_, err = b.Link(ctx, name, name+"2")
		}
		if err == nil || errors.Is(err, backends.ErrExist) {
			err = b.Rename(ctx, name, name+"3", false)
		}
		for _, n := range []string{"", "2", "3"} {
			if err == nil || errors.Is(err, backends.ErrNotExist) {
				err = b.Remove(ctx, name+n, false)
			}
		}
		if err != nil && !errors.Is(err, backends.ErrNotExist) {
			return err
		}
	}
}

var writeAll = backends.Lock{Range: backends.Whole, Mode: backends.Write}

// process is a running child.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string
}

func startChild(t *testing.T, k task) *process {
	t.Helper()
	return startChildWith(t, k, nil)
}

func startChildWith(t *testing.T, k task, attr *syscall.SysProcAttr) *process {
	t.Helper()
	text, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, attr
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: stdin, lines: make(chan string, 100)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-read
		_ = cmd.Wait() // killed
	})
	return p
}

// says waits for a line that begins so.
func (p *process) says(prefix string) string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok || !strings.HasPrefix(line, prefix) {
			p.t.Fatalf("the child said %q, want %q", line, prefix)
		}
		return line
	case <-time.After(20 * time.Second):
		p.t.Fatalf("the child does not say %q", prefix)
	}
	return ""
}

// kill ends the process as SIGKILL does.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
}
