package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
	"lockfs/config"
	"lockfs/fs/mountpoint"
)

// envMain makes the test program lockfs itself.
const envMain = "LOCKFS_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(envMain) != "" {
		main()
	}
	for _, name := range []string{config.EnvFile, config.EnvFileAlias, config.EnvBlock} {
		_ = os.Unsetenv(name)
	}
	os.Exit(m.Run())
}

// place is a mount point with a configuration (file back end) for one test.
type place struct {
	t                  *testing.T
	dir, point, config string
	log                string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{t, dir, filepath.Join(dir, "mnt"), filepath.Join(dir, "lockfs.yml"), filepath.Join(dir, "log")}
	state := filepath.Join(dir, "state")
	if err := errors.Join(os.Mkdir(p.point, 0o755), os.Mkdir(state, 0o700)); err != nil {
		t.Fatal(err)
	}
	p.configure("log: {file: " + p.log + "}\nbackends: [{type: file, config: {path: " + state + "}}]\n")
	t.Cleanup(func() {
		pids := append(p.pids(), p.servers()...)
		for range 8 {
			if mountpoint.Unmount(p.point, true) != nil {
				break
			}
		}
		for _, pid := range pids {
			p.gone(pid)
		}
	})
	return p
}

func (p *place) configure(text string) {
	p.t.Helper()
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// command is lockfs, or under another name.
func (p *place) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Args[0] = name
	c.Env = append(os.Environ(), envMain+"=1", "GORACE=atexit_sleep_ms=0") // else each exit takes a second
	c.Dir = p.dir
	return c
}

// expect runs lockfs to its end, checks its exit code and returns its output.
// It also holds that a background mount lets go of the output.
func (p *place) expect(code int, args ...string) string {
	p.t.Helper()
	return p.finish(p.command("lockfs", args...), code)
}

func (p *place) finish(c *exec.Cmd, code int) string {
	p.t.Helper()
	out, err := c.CombinedOutput()
	if got := c.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%q: exit code %d, want %d (%v)\n%s", c.Args, got, code, err, out)
	}
	return string(out)
}

var pidsInLog = regexp.MustCompile(`msg=mounted .*pid=(\d+) server=(\d+)`)

// pids are the keepers that have mounted here, by the log; one for each of its servers.
func (p *place) pids() []int { return p.logged(1) }

// servers are the server processes, by the log.
func (p *place) servers() []int { return p.logged(2) }

func (p *place) logged(which int) (all []int) {
	data, _ := os.ReadFile(p.log)
	for _, m := range pidsInLog.FindAllSubmatch(data, -1) {
		pid, _ := strconv.Atoi(string(m[which]))
		all = append(all, pid)
	}
	return all
}

// crash ends the last mount's processes as a machine's crash would: none of them can do anything any more.
func (p *place) crash() {
	p.t.Helper()
	pids, servers := p.pids(), p.servers()
	keeper, server := pids[len(pids)-1], servers[len(servers)-1]
	if err := errors.Join(syscall.Kill(keeper, syscall.SIGSTOP), syscall.Kill(server, syscall.SIGKILL), syscall.Kill(keeper, syscall.SIGKILL)); err != nil {
		p.t.Fatal(err)
	}
	p.gone(keeper)
	p.gone(server)
}

// gone waits for the end of a mount's process, which is no child of ours.
func (p *place) gone(pid int) {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
	p.t.Errorf("process %d is still there", pid)
}

func (p *place) mounted() bool {
	p.t.Helper()
	m, found, err := mountpoint.Find(p.point)
	if err != nil {
		p.t.Fatal(err)
	}
	return found && m.IsLockfs()
}

// locks makes sure that the mount locks: flock(1) holds, another one fails.
func (p *place) locks() {
	p.t.Helper()
	lock := filepath.Join(p.point, "a lock")
	out, err := exec.Command("flock", "-n", lock, "flock", "-n", "-E", "7", lock, "true").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		p.t.Errorf("a lock within a lock: %v: %s", err, out)
	}
}

// signal sends a signal to a mount's process and waits for its end.
func (p *place) signal(pid int, s syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		p.t.Fatal(err)
	}
	p.gone(pid)
}

func TestMountInBackground(t *testing.T) {
	p := newPlace(t)
	if out := p.expect(0, "mount", "-c", p.config, p.point); out != "" {
		t.Errorf("it said %s", out)
	}
	if !p.mounted() {
		t.Fatal("mount returned before the mount was live")
	}
	p.locks()
	if out := p.expect(1, "mount", "-c", p.config, p.point); !strings.Contains(out, "lockfs: mount point "+p.point+" is a mount point already, of lockfs;") || strings.Count(out, "\n") != 1 {
		t.Errorf("stacked: %s", out)
	}
	p.expect(0, "umount", p.point)
	if p.mounted() {
		t.Error("still mounted")
	}
	p.gone(p.pids()[0])
	if out := p.expect(1, "umount", p.point); !strings.Contains(out, "is not mounted") {
		t.Errorf("umount again: %s", out)
	}
}

// TestSignals: each ends the mount cleanly with exit code 0.
func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			p := newPlace(t)
			p.configure("log: {level: info}\nmountpoint: " + p.point + "\nbackends: [{type: file, config: {path: " + p.dir + "/state}}]")
			c := p.command("lockfs", "mount", "-c", p.config, "--foreground")
			var stderr bytes.Buffer
			c.Stderr = &stderr
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(20 * time.Second); !p.mounted() && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
			p.locks()
			if err := c.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err != nil {
				t.Errorf("%v: %s", err, &stderr)
			}
			if p.mounted() {
				t.Error("still mounted")
			}
			if !strings.Contains(stderr.String(), "msg=mounted") || !strings.Contains(stderr.String(), "stopped by a signal") {
				t.Errorf("log: %s", &stderr)
			}
		})
	}
}

// TestTermWhileInUse: the mount goes although a file on it is open.
func TestTermWhileInUse(t *testing.T) {
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	f, err := os.Create(filepath.Join(p.point, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.signal(p.pids()[0], syscall.SIGTERM)
	if p.mounted() {
		t.Error("still mounted")
	}
}

// TestHangUpReopensTheLog: a background mount takes SIGHUP for log rotation.
func TestHangUpReopensTheLog(t *testing.T) {
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	pid := p.pids()[0]
	if err := errors.Join(os.Rename(p.log, p.log+".1"), syscall.Kill(pid, syscall.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(p.log); err == nil {
			break
		}
	}
	p.expect(0, "umount", p.point)
	p.gone(pid)
	if data, err := os.ReadFile(p.log); err != nil || !strings.Contains(string(data), "msg=unmounted") {
		t.Errorf("the new log: %v: %s", err, data)
	}
}

func TestDeadMountIsReplaced(t *testing.T) {
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	p.crash()
	// Threads of the server may still be dying. Until the kernel gives the connection up, as it is just about to (ECONNABORTED), one of them can
	// take a request and not have the memory for it any more (fuse_dev_do_read: EIO).
	testserver.Within(t, 10*time.Second, "the mount is dead", func() bool {
		_, err := os.ReadDir(p.point)
		if err == nil {
			t.Fatal("the mount is not dead")
		}
		return errors.Is(err, unix.ENOTCONN)
	})
	out := p.expect(0, "mount", "-c", p.config, p.point)
	if !strings.HasPrefix(out, "lockfs: warning: took away a mount that a crashed server had left") {
		t.Errorf("it said %q", out)
	}
	p.locks()
}

// TestRefusals: one line that names the thing and the way out, and nothing left behind.
func TestRefusals(t *testing.T) {
	p := newPlace(t)
	bad := filepath.Join(p.dir, "bad.yml")
	file := filepath.Join(p.dir, "state/file")
	unreachable := filepath.Join(p.dir, "unreachable.yml")
	for path, text := range map[string]string{
		bad:         "clutser: x\nbackends: [{type: redis, config: {password: [hunter2]}}]",
		file:        "",
		unreachable: "backends: [{type: redis, config: {port: 1, password: hunter2, socket_timeout: 0.2}}]",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		code  int
		lines int
		words string
		args  []string
	}{
		{1, 1, "mkdir -p " + p.dir + "/no", []string{"mount", "-c", p.config, p.dir + "/no"}},
		{1, 1, "is not a directory", []string{"mount", "-c", p.config, file}},
		{1, 1, "of proc (proc)", []string{"mount", "-c", p.config, "/proc"}},
		{1, 2, bad + ":1: unknown key \"clutser\"; did you mean cluster?", []string{"mount", "-c", bad, p.point}},
		{1, 1, "/no/such.yml", []string{"mount", "-c", "/no/such.yml", p.point}},
		{1, 1, "/no/such.yml", []string{"mount", "-o", "config=/no/such.yml", p.point}},
		{1, 1, "-o: lock_on_open: \"x\" is not known", []string{"mount", "-c", p.config, "-o", "lock_on_open=x", p.point}},
		{1, 1, "localhost:1", []string{"mount", "-f", "-c", unreachable, p.point}},
		{2, 1, "no mount point", []string{"mount", "-c", p.config}},
		{2, 1, "named twice", []string{"mount", "-c", p.config, "-o", "config=/x", p.point}},
		{2, 1, "ro makes no sense", []string{"mount", "-c", p.config, "-o", "ro", p.point}},
		{2, 1, "unknown flag", []string{"mount", "--bogus"}},
		{2, 1, "2 arguments", []string{"mount", p.point, p.point}},
		{2, 1, "0 arguments", []string{"umount"}},
		{2, 1, "unknown command \"mout\"", []string{"mout", p.point}},
		{2, 1, "no command", nil},
		{1, 2, bad + ":2: backends[0].config.password: is a list", []string{"check", "-c", bad}},
		{1, 1, "is not a lockfs mount", []string{"umount", "/proc"}},
	} {
		out := p.expect(test.code, test.args...)
		last := out
		if i := strings.LastIndex(strings.TrimSuffix(out, "\n"), "\nlockfs: "); test.lines == 1 && i >= 0 && test.args[1] == "-f" {
			last = out[i+1:] // the log of a foreground mount comes before it
		}
		if strings.Count(last, "\n") != test.lines || !strings.HasPrefix(last, "lockfs: ") || !strings.Contains(last, test.words) || strings.Contains(out, "hunter2") {
			t.Errorf("%q: %s", test.args, out)
		}
		if p.mounted() {
			t.Fatalf("%q left a mount", test.args)
		}
	}
}

func TestBlocked(t *testing.T) {
	p := newPlace(t)
	c := p.command("lockfs", "mount", "-c", p.config, p.point)
	c.Env = append(c.Env, config.EnvBlock+"=1")
	if out := p.finish(c, 1); out != "lockfs: locking is turned off: $ISF_DISTRIBUTED_LOCK_BLOCK is set; unset it to mount\n" {
		t.Errorf("it said %s", out)
	}
}

func TestLazyUmount(t *testing.T) {
	p := newPlace(t)
	p.expect(0, "mount", "-c", p.config, p.point)
	f, err := os.Create(filepath.Join(p.point, "held"))
	if err != nil {
		t.Fatal(err)
	}
	if out := p.expect(1, "umount", p.point); !strings.Contains(out, "is in use") {
		t.Errorf("it said %s", out)
	}
	p.expect(0, "umount", "-l", p.point)
	if p.mounted() {
		t.Error("still mounted")
	}
	_ = f.Close()
	p.gone(p.pids()[0])
}

func TestCheck(t *testing.T) {
	p := newPlace(t)
	p.configure("backends:\n- {type: redis, config: {port: 1, password: hunter2}}\n- {type: file, config: {path: " + p.dir + "/state}}\n- {type: file, config: {path: " + p.dir + "/state}}\n")
	out := p.expect(0, "check", "-c", p.config)
	for _, want := range []string{
		"configuration: " + p.config + ": good\n",
		"back end 1: redis at localhost:1, database 0: ",
		"back end 2: file in " + p.dir + "/state: answers, would be used\nwarning: its locks end at this machine",
		"back end 3: file in " + p.dir + "/state: answers, would not be used\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	p.configure("[{type: redis, config: {port: 1, password: hunter2}}]")
	if out := p.expect(1, "check", "-c", p.config); !strings.HasSuffix(out, "\nlockfs: no back end can be used; start one, or correct the configuration\n") || strings.Contains(out, "hunter2") {
		t.Errorf("it said %s", out)
	}
}

// TestInterruptedWhileStarting: the server takes the connection and never
// answers; whoever gives up waiting leaves nothing behind.
func TestInterruptedWhileStarting(t *testing.T) {
	p := newPlace(t)
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	p.configure(fmt.Sprintf("[{type: redis, config: {url: 'redis://%s', socket_timeout: 60}}]", deaf.Addr()))
	for _, flags := range [][]string{{}, {"-f"}} {
		c := p.command("lockfs", append([]string{"mount", "-c", p.config, p.point}, flags...)...)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		connection, err := deaf.Accept()
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := c.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); c.ProcessState.ExitCode() != exitFailure {
			t.Errorf("%v: %v", flags, err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%v: took %v", flags, took)
		}
		if !strings.Contains(stderr.String(), "signal") || p.mounted() {
			t.Errorf("%v: mounted: %v, stderr: %s", flags, p.mounted(), &stderr)
		}
		// The other end of the connection is gone, and with it the process that had it.
		_ = connection.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, connection); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v: the connection is still open: %v", flags, err)
		}
		_ = connection.Close()
	}
}

func TestVersionAndCompletion(t *testing.T) {
	p := newPlace(t)
	if out := p.expect(0, "version"); !regexp.MustCompile(`^lockfs \S+ go1\.\S+ linux/\w+\n$`).MatchString(out) {
		t.Errorf("version: %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := p.expect(0, "completion", shell); !strings.Contains(out, "lockfs") {
			t.Errorf("completion for %s: %q", shell, out)
		}
	}
	if out := p.expect(0, "__complete", "mount", "-"); !strings.Contains(out, "--foreground") {
		t.Errorf("completion of flags: %s", out)
	}
}
