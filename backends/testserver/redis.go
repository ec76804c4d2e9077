package testserver

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// RedisServer is a private redis-server. It ends with the test.
type RedisServer struct {
	t      testing.TB
	port   int
	args   []string
	dir    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
	output *Output
}

// Redis starts a redis-server on a free port of the loopback interface, with a
// data directory of its own and no persistence. args are further options, as
// on its command line ("--appendonly", "yes"). It is the test's failure when the
// program is not there.
func Redis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	s := redisServer(t, args)
	if err := s.declareNew(); err != nil {
		t.Fatal(err)
	}
	return s
}

// redisServer starts one without any declaration. args may begin with a file of settings.
func redisServer(t testing.TB, args []string) *RedisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatalf("this test needs redis-server: install Debian's package redis-server (%v)", err)
	}
	s := &RedisServer{t: t, args: args, dir: t.TempDir()}
	t.Cleanup(s.Stop)
	var err error
	for range 5 { // another program may take the port first
		s.port = freePort(t)
		if err = s.start(); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// Addr is the server's host:port.
func (s *RedisServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// PID is the server's process, for tests that stop and continue it.
func (s *RedisServer) PID() int { return s.cmd.Process.Pid }

// Dir is the server's data directory.
func (s *RedisServer) Dir() string { return s.dir }

// declareNew says that the server can have forgotten nothing (docs/reliability.md),
// for each database: it grants locks at once. A server that is started again is
// not declared new. Where the server refuses, tests have other plans with it.
func (s *RedisServer) declareNew() error {
	conn, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	commands := ""
	if i := slices.Index(s.args, "--requirepass"); i >= 0 {
		commands = "AUTH " + s.args[i+1] + "\r\n"
	}
	if _, err := io.WriteString(conn, commands+"INFO server\r\n"); err != nil {
		return err
	}
	run, r := "", bufio.NewReader(conn)
	for run == "" {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("asking for the run_id: %w", err)
		}
		run, _ = strings.CutPrefix(strings.TrimSpace(line), "run_id:")
		if !strings.HasPrefix(line, "run_id:") {
			run = ""
		}
	}
	commands = ""
	for db := range 16 {
		commands += fmt.Sprintf("SELECT %d\r\nSET lockfs:new %s\r\n", db, run)
	}
	if _, err := io.WriteString(conn, commands+"QUIT\r\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r) // until it has done all of it
	return err
}

// Start starts the server again after Stop, with the same port and data directory.
func (s *RedisServer) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Stop kills the server, as a crash would. It may be stopped already.
func (s *RedisServer) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended by itself
	<-s.exited
	s.cmd = nil
}

func (s *RedisServer) start() error {
	own := []string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--daemonize", "no"}
	args := append(append(own, "--save", ""), s.args...)
	if len(s.args) > 0 && !strings.HasPrefix(s.args[0], "--") { // a file of settings comes first
		args = append(append(s.args[:1:1], own...), s.args[1:]...)
	}
	s.output = &Output{}
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.Env = append(os.Environ(), "LC_ALL=C")
	// It dies with the test's process, whatever happens to that.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fmt.Errorf("starting redis-server: %w", err)
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() { // ends with the process: Stop
		_ = cmd.Wait() // "signal: killed"
		close(exited)
	}()
	if err := s.ready(); err != nil {
		s.Stop()
		return fmt.Errorf("redis-server on port %d: %w; it says: %s", s.port, err, s.output.String())
	}
	return nil
}

// ready waits until this server, and no other on the same port, answers.
func (s *RedisServer) ready() error {
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = s.ping(); err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("it has ended: %w", err)
		default:
		}
	}
	return fmt.Errorf("not ready in time: %w", err)
}

// ping succeeds when the server answers, be it that it wants a password.
func (s *RedisServer) ping() error {
	conn, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err = conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && strings.HasPrefix(line, "-LOADING") {
		err = fmt.Errorf("it answers %q", line)
	}
	return err
}

// Command sends a command and returns the answer as it is on the wire; "" where there is none.
func (s *RedisServer) Command(words ...string) string {
	conn, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	request := fmt.Sprintf("*%d\r\n", len(words))
	for _, w := range words {
		request += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return ""
	}
	answer, _ := readAnswer(bufio.NewReader(conn)) // what came before an error is what is asked for
	return answer
}

// readAnswer reads one answer, with all that is in it.
func readAnswer(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil || line[0] != '$' && line[0] != '*' {
		return line, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if err != nil || n < 0 {
		return line, err
	}
	if line[0] == '$' {
		text := make([]byte, n+2)
		_, err = io.ReadFull(r, text)
		return line + string(text), err
	}
	for range n {
		part, err := readAnswer(r)
		line += part
		if err != nil {
			return line, err
		}
	}
	return line, nil
}

// freePort returns a port of the loopback interface that nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
