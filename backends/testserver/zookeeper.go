package testserver

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ZooKeeperServer is a private ZooKeeper server. It ends with the test.
type ZooKeeperServer struct {
	t        testing.TB
	port     int
	dir      string
	settings string   // of its own, beside those that all have
	java     []string // settings of its Java
	cmd      *exec.Cmd
	done     chan struct{} // closed when the process has ended
	log      Output
}

// The class path as Debian's packages have it: zookeeper depends on the rest.
var zooKeeperJars = []string{"/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-nop.jar"}

// ZooKeeper starts a standalone ZooKeeper server on a free port of the loopback
// interface, with a data directory of its own, that grants session time-outs from 400 ms to a
// minute. It is the test's failure when the programs are not there. Starting
// takes a second or two: share one server where tests allow.
func ZooKeeper(t testing.TB) *ZooKeeperServer {
	t.Helper()
	haveZooKeeper(t)
	s := &ZooKeeperServer{t: t, dir: t.TempDir()}
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

func haveZooKeeper(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("java"); err != nil {
		t.Fatalf("this test needs java: install Debian's package default-jre-headless (%v)", err)
	}
	for _, jar := range zooKeeperJars {
		if _, err := os.Stat(jar); err != nil {
			t.Fatalf("this test needs ZooKeeper 3.8: install Debian's packages zookeeper and libslf4j-java (%v)", err)
		}
	}
}

// Addr is the server's host:port.
func (s *ZooKeeperServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// PID is the server's process, for tests that stop and continue it.
func (s *ZooKeeperServer) PID() int { return s.cmd.Process.Pid }

// Dir is the server's data directory.
func (s *ZooKeeperServer) Dir() string { return s.dir }

// Start starts the server again after Stop, with the same port and data directory.
func (s *ZooKeeperServer) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Stop kills the server; the data stay. It may be called again.
func (s *ZooKeeperServer) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended by itself
	<-s.done
	s.cmd = nil
}

func (s *ZooKeeperServer) start() error {
	if err := s.launch(); err != nil {
		return err
	}
	return s.await()
}

// launch starts the process.
func (s *ZooKeeperServer) launch() error {
	file := filepath.Join(s.dir, "zoo.cfg")
	settings := fmt.Sprintf("tickTime=200\ndataDir=%s\nclientPortAddress=127.0.0.1\nclientPort=%d\nadmin.enableServer=false\n"+
		"minSessionTimeout=400\nmaxSessionTimeout=60000\nmaxClientCnxns=0\n4lw.commands.whitelist=*\n", s.dataDir(), s.port)
	if err := os.WriteFile(file, []byte(settings+s.settings), 0o600); err != nil {
		return err
	}
	args := append([]string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dzookeeper.jmx.log4j.disable=true"}, s.java...)
	cmd := exec.Command("java", append(args, "-cp", strings.Join(zooKeeperJars, ":"), "org.apache.zookeeper.server.quorum.QuorumPeerMain", file)...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	// It ends with this process, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting ZooKeeper: %w", err)
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(s.done)
	}()
	return nil
}

func (s *ZooKeeperServer) dataDir() string { return filepath.Join(s.dir, "data") }

// await waits until the server serves.
func (s *ZooKeeperServer) await() error {
	ended := false
	served := Until(60*time.Second, func() bool {
		select {
		case <-s.done:
			ended = true
			return true
		default:
			return strings.Contains(s.Command("srvr"), "Mode: ")
		}
	})
	switch {
	case ended:
		s.cmd = nil
		return fmt.Errorf("ZooKeeper at %s ended at once:\n%s", s.Addr(), s.log.String())
	case !served:
		s.Stop()
		return fmt.Errorf("ZooKeeper at %s does not serve within a minute:\n%s", s.Addr(), s.log.String())
	}
	return nil
}

// Command sends one of the server's four-letter commands ("mntr") and returns the
// answer, empty where there is none.
func (s *ZooKeeperServer) Command(word string) string {
	c, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte(word)); err != nil {
		return ""
	}
	var answer bytes.Buffer
	_, _ = answer.ReadFrom(c) // what came before an error is what is asked for
	return answer.String()
}
