package integration

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
)

//go:embed client.py
var clientSource string

// python is Debian's, which has Debian's packages.
const python = "/usr/bin/python3"

// client is a program with one thread that makes the calls that it is told (client.py).
type client struct {
	t       testing.TB
	dir     string // names are below it
	cmd     *exec.Cmd
	in      io.WriteCloser
	replies chan reply // closed when the process has ended
	stderr  testserver.Output
}

// reply says what a call came to.
type reply struct {
	Value        json.RawMessage
	Errno        syscall.Errno
	Began, Ended time.Duration // on the clock of monotonic
}

func (r reply) err() error {
	if r.Errno == 0 {
		return nil
	}
	return r.Errno
}

func (r reply) int() int {
	var n int
	_ = json.Unmarshal(r.Value, &n) // not a number: 0
	return n
}

// client starts a program on the node. It ends with the test, by SIGKILL.
func (n *node) client(t testing.TB, dir string) *client {
	t.Helper()
	c := &client{t: t, dir: filepath.Join(n.dir, dir), replies: make(chan reply, 1)}
	c.cmd = exec.Command(python, "-c", clientSource)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.Stderr = &c.stderr
	var err error
	c.in, err = c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("this test needs %s: install Debian's package python3 (%v)", python, err)
	}
	go c.listen(out)
	t.Cleanup(func() {
		c.kill()
		_ = c.cmd.Wait() // killed
		if text := c.stderr.String(); text != "" {
			t.Errorf("the client says: %s", text)
		}
	})
	return c
}

// client starts a program on a node of the cluster.
func (e *env) client(t testing.TB, node int) *client {
	t.Helper()
	return e.nodes[node].client(t, "")
}

func (c *client) listen(out io.Reader) {
	defer close(c.replies)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			c.t.Errorf("the client says %q: %v", lines.Text(), err)
			return
		}
		c.replies <- r
	}
}

// kill ends the program and its children, as SIGKILL does.
func (c *client) kill() { _ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }

func (c *client) pid() int { return c.cmd.Process.Pid }

// pending is a call that has begun.
type pending struct {
	c    *client
	what string
}

// begin makes the program begin a call.
func (c *client) begin(function string, args ...any) *pending {
	c.t.Helper()
	line, err := json.Marshal(append([]any{function}, args...))
	must(c.t, err)
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		c.t.Fatalf("%s: %v; %s", line, err, c.stderr.String())
	}
	return &pending{c, fmt.Sprint(function, args)}
}

// wait returns what the call came to.
func (p *pending) wait() reply {
	p.c.t.Helper()
	select {
	case r, ok := <-p.c.replies:
		if !ok {
			p.c.t.Fatalf("%s: the client ended; %s", p.what, p.c.stderr.String())
		}
		return r
	case <-time.After(patience):
		p.c.t.Fatalf("%s: not back after %v", p.what, patience)
		return reply{}
	}
}

// blocked returns once the call waits in the file system.
func (p *pending) blocked() *pending {
	p.c.t.Helper()
	eventually(p.c.t, p.what+" waits", func() bool {
		select {
		case r := <-p.c.replies:
			p.c.t.Fatalf("%s did not wait: %v", p.what, r.err())
		default:
		}
		return waitsInFUSE(p.c.pid())
	})
	return p
}

// stillBlocked fails the test where the call is over.
func (p *pending) stillBlocked() {
	p.c.t.Helper()
	p.blocked()
}

func (c *client) call(function string, args ...any) reply {
	c.t.Helper()
	return c.begin(function, args...).wait()
}

// signal sends the program a signal.
func (c *client) signal(s syscall.Signal) {
	c.t.Helper()
	must(c.t, syscall.Kill(c.pid(), s))
}

// file is a descriptor of a program.
type file struct {
	c  *client
	fd int
}

// beginOpen begins an open that is expected to wait; opened takes its result.
func (c *client) beginOpen(name string, flags int) *pending {
	c.t.Helper()
	return c.begin("open", filepath.Join(c.dir, name), flags, 0o666)
}

// opened waits for an open that must succeed.
func (p *pending) opened() file {
	p.c.t.Helper()
	r := p.wait()
	want(p.c.t, p.what, r.err(), 0)
	return file{p.c, r.int()}
}

func (c *client) open(name string, flags int) file {
	c.t.Helper()
	return c.beginOpen(name, flags).opened()
}

// tryOpen is an open that may fail; it closes what it opened.
func (c *client) tryOpen(name string, flags int) error {
	c.t.Helper()
	r := c.beginOpen(name, flags).wait()
	if r.err() == nil {
		file{c, r.int()}.close()
	}
	return r.err()
}

func (f file) close() {
	f.c.t.Helper()
	want(f.c.t, "close", f.c.call("close", f.fd).err(), 0)
}

func (f file) dup() file {
	f.c.t.Helper()
	return file{f.c, f.c.call("dup", f.fd).int()}
}

func (f file) flock(how int) error {
	f.c.t.Helper()
	return f.c.call("flock", f.fd, how).err()
}

func (f file) beginFlock(how int) *pending {
	f.c.t.Helper()
	return f.c.begin("flock", f.fd, how)
}

// The commands of fcntl.
const (
	setlk    = unix.F_SETLK
	setlkw   = unix.F_SETLKW
	ofdSetlk = unix.F_OFD_SETLK
)

// fcntl locks length bytes from start; 0 bytes are all to the end.
func (f file) fcntl(cmd, mode, start, length int) error {
	f.c.t.Helper()
	return f.c.call("fcntl", f.fd, cmd, mode, start, length).err()
}

func (f file) beginFcntl(cmd, mode, start, length int) *pending {
	f.c.t.Helper()
	return f.c.begin("fcntl", f.fd, cmd, mode, start, length)
}

// inTheWay is what F_GETLK and F_OFD_GETLK say.
type inTheWay struct{ mode, start, length, pid int }

func (f file) getlk(cmd, mode, start, length int) inTheWay {
	f.c.t.Helper()
	r := f.c.call("fcntl", f.fd, cmd, mode, start, length)
	want(f.c.t, "F_GETLK", r.err(), 0)
	var v [4]int
	must(f.c.t, json.Unmarshal(r.Value, &v))
	return inTheWay{v[0], v[1], v[2], v[3]}
}

func (f file) write(text string) {
	f.c.t.Helper()
	want(f.c.t, "write", f.c.call("write", f.fd, text).err(), 0)
}

// read returns all of the file, through this descriptor.
func (f file) read() string {
	f.c.t.Helper()
	r := f.c.call("read", f.fd)
	want(f.c.t, "read", r.err(), 0)
	var text string
	must(f.c.t, json.Unmarshal(r.Value, &text))
	return text
}
