package mountpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const envServe = "LOCKFS_TEST_SERVE"

// TestMain doubles as the server of the mounts that the tests need: a mount
// and those who use it must not be one process.
func TestMain(m *testing.M) {
	if point := os.Getenv(envServe); point != "" {
		serve(point)
		return
	}
	goleak.VerifyTestMain(m)
}

func serve(point string) {
	server, err := fuse.NewServer(fuse.NewDefaultRawFileSystem(), point,
		&fuse.MountOptions{FsName: "none", Name: "lockfs", DirectMount: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() {
		_ = server.WaitMount()
		fmt.Println("ready")
	}()
	server.Serve()
}

// mount mounts a file system without any file at point, in a process of its
// own; whatever the test does to it, it's gone at the test's end.
func mount(t *testing.T, point string) *exec.Cmd {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), envServe+"="+point)
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGCONT)
		_ = command.Process.Kill()
		_ = command.Wait()
		for {
			if _, found, err := Find(point); err != nil || !found || detach(point) != nil {
				return
			}
		}
	})
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("mounting: %s%s", line, rest)
	}
	return command
}

func kill(command *exec.Cmd) {
	_ = command.Process.Kill()
	_ = command.Wait()
}

// expect checks kind and words of an error.
func expect(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want: %v", err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in: %v", word, err)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Prepare(filepath.Join(dir, "a/b"))
	expect(t, err, ErrMissing, "mkdir -p "+dir+"/a/b")
	_, err = Prepare(filepath.Join(dir, "a"))
	expect(t, err, ErrMissing, "mkdir -p "+dir+"/a")
	_, err = Prepare(file)
	expect(t, err, ErrNotDir, file)
	_, err = Prepare("/proc")
	expect(t, err, ErrMounted, "/proc", "proc (proc)")
}

func TestPrepareResolvesLinks(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real dir")
	if err := errors.Join(os.Mkdir(real, 0o700), os.Symlink("real dir", filepath.Join(dir, "link")), os.Symlink(".", filepath.Join(dir, "self"))); err != nil {
		t.Fatal(err)
	}
	place, err := Prepare(filepath.Join(dir, "self", "link"))
	if err != nil || place.Path != real {
		t.Fatalf("got %+v, %v", place, err)
	}
	place.Release()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(loop); err == nil {
		t.Error("a link to itself was accepted")
	}
}

// TestPrepareReserves: two mounts that are made at the same time don't end up stacked.
func TestPrepareReserves(t *testing.T) {
	point := t.TempDir()
	first, err := Prepare(point)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Prepare(point)
	expect(t, err, ErrMounted, "about to mount")
	mount(t, point)
	first.Release()
	_, err = Prepare(point)
	expect(t, err, ErrMounted, "lockfs umount")
}

func TestPrepareRefusesALivingMount(t *testing.T) {
	point := filepath.Join(t.TempDir(), "with space")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, point)
	if m, found, err := Find(point); err != nil || !found || !m.IsLockfs() {
		t.Fatalf("found %+v, %v, %v", m, found, err)
	}
	if state := Probe(point); state != Alive {
		t.Errorf("state %v", state)
	}
	_, err := Prepare(point)
	expect(t, err, ErrMounted, "lockfs umount "+point)
}

func TestPrepareClearsDeadMounts(t *testing.T) {
	point := t.TempDir()
	kill(mount(t, point))
	if _, err := os.Stat(point); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	place, err := Prepare(point)
	if err != nil || place.Path != point || place.Cleared != 1 {
		t.Fatalf("got %+v, %v", place, err)
	}
	defer place.Release()
	if _, found, _ := Find(point); found {
		t.Error("a mount is left")
	}
	mount(t, point) // and it can be used again
}

// freeze stops a process and waits until each of its threads has stopped:
// one that is still running could answer.
func freeze(t *testing.T, command *exec.Cmd) {
	t.Helper()
	if err := command.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	running := func(stat string) bool {
		data, err := os.ReadFile(stat)
		return err == nil && !strings.Contains(string(data), ") T ")
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", command.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(threads, running) {
			return
		}
	}
	t.Fatal("the server does not stop")
}

func TestFrozenMount(t *testing.T) {
	point := t.TempDir()
	server := mount(t, point)
	freeze(t, server)
	start := time.Now()
	_, err := Prepare(point)
	expect(t, err, ErrFrozen, "lockfs umount -l "+point)
	if took := time.Since(start); took > answerTime+3*time.Second {
		t.Errorf("took %v", took)
	}
	if err := Unmount(point, true); err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(point); err != nil {
		t.Errorf("after umount -l: %v", err)
	}
}

func TestUnmount(t *testing.T) {
	point := t.TempDir()
	expect(t, Unmount(filepath.Join(point, "no"), false), ErrNotMounted)
	expect(t, Unmount(filepath.Join(point, "no/no"), false), ErrMissing)
	expect(t, Unmount(point, false), ErrNotMounted, point)
	expect(t, Unmount("/proc", false), ErrNotLockfs, "proc")

	server := mount(t, point)
	// O_PATH holds the mount without asking it anything.
	fd, err := unix.Open(point, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, Unmount(point, false), ErrBusy, "umount -l "+point)
	_ = unix.Close(fd)
	if err := Unmount(point, false); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	if _, found, _ := Find(point); found {
		t.Error("still mounted")
	}
}

func TestUnmountDead(t *testing.T) {
	point := t.TempDir()
	kill(mount(t, point))
	if err := Unmount(point, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(point); err != nil {
		t.Error(err)
	}
}

func TestCheckFUSE(t *testing.T) {
	if err := CheckFUSE(); err != nil {
		t.Fatal(err) // the tests need it
	}
	expect(t, checkFUSE(filepath.Join(t.TempDir(), "fuse")), ErrNoFUSE, "modprobe fuse", "--device /dev/fuse")
}

func TestParse(t *testing.T) {
	mounts, err := parse(strings.NewReader(`36 35 98:0 /root /mnt/a\040b\134 rw,noatime shared:1 master:2 - fuse.lockfs no\011ne rw,user_id=0
nonsense
40 35 0:5 / /proc rw - proc proc rw
`))
	want := []Mount{{36, `/mnt/a b\`, "fuse.lockfs", "no\tne", "98:0"}, {40, "/proc", "proc", "proc", "0:5"}}
	if err != nil || !reflect.DeepEqual(mounts, want) {
		t.Errorf("got %+v, %v", mounts, err)
	}
}

func TestParseOptions(t *testing.T) {
	o, err := ParseOptions("rw,nosuid,nodev,noexec,noauto,_netdev,nofail,user,defaults,x-systemd.automount,x-systemd.requires=a",
		"config=/etc/a=b.yml,cluster=c", "", "lock_on_open=never,allow_other,default_permissions,dev,suid,noatime")
	want := Options{Config: "/etc/a=b.yml", Keys: []Key{{"cluster", "c"}, {"lock_on_open", "never"}}, AllowOther: true, Kernel: []string{"noexec"}}
	if err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("got %+v, %v", o, err)
	}
	for list, word := range map[string]string{
		"ro": "ro", "rw,remount": "remount", "config=": "config=VALUE", "cluster": "cluster=VALUE",
		"password=secret": "unknown mount option password;", "bogus": "unknown mount option bogus;", "backends=x": "backends",
	} {
		if _, err := ParseOptions(list); err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", list, err)
		}
	}
}
