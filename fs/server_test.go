package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	filebackend "lockfs/backends/file"
	"lockfs/config"
)

func TestUnmountedBySomebodyElse(t *testing.T) {
	c := mount(t, 1)
	must(t, os.WriteFile(c.on(0, "x"), nil, 0o600))
	eventually(t, "unmount", func() bool { return syscall.Unmount(c.nodes[0], 0) == nil })
	select {
	case <-c.servers[0].ended:
	case <-time.After(10 * time.Second):
		t.Fatal("Wait does not return")
	}
	check(t, "the server", c.servers[0].err, 0)
}

// Close of a busy mount releases what it holds, ends who waits, and detaches.
func TestCloseWhileBusy(t *testing.T) {
	c := mount(t, 2)
	held := open(t, c.on(0, "x"), syscall.O_WRONLY|syscall.O_CREAT)
	defer syscall.Close(held)
	must(t, flockNB(held, ex))
	wanted := open(t, c.on(0, "x"), syscall.O_RDONLY)
	defer syscall.Close(wanted)
	waits := make(chan error, 1)
	go func() { waits <- repeat(func() error { return syscall.Flock(wanted, ex) }) }()
	time.Sleep(50 * time.Millisecond) // it would be as good if it had not come to the wait
	other := open(t, c.on(1, "x"), syscall.O_RDONLY)
	defer syscall.Close(other)
	check(t, "held", flockNB(other, ex), syscall.EWOULDBLOCK)

	must(t, c.servers[0].stop())
	if log := c.servers[0].log.String(); !strings.Contains(log, "detaching") {
		t.Errorf("the log does not say so: %s", log)
	}
	check(t, "free on the other node", flockNB(other, ex), 0)
	check(t, "the waiter", <-waits, syscall.ENOTCONN)
	_, err := syscall.Write(held, []byte("x"))
	check(t, "write through a descriptor of it", err, syscall.ENOTCONN)
}

// A device that is no mount, and a context that has ended: nothing is left behind.
func TestMountFails(t *testing.T) {
	backend, err := filebackend.Open(t.Context(), config.File{Path: t.TempDir()}, "test", nil)
	must(t, err)
	defer backend.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for what, c := range map[string]struct {
		ctx  context.Context
		path string
	}{"not mounted": {t.Context(), "/dev/fuse"}, "no device": {t.Context(), "/dev/null"}, "context": {ended, "/dev/fuse"}} {
		device, err := os.OpenFile(c.path, os.O_RDWR, 0)
		must(t, err)
		_, err = Mount(c.ctx, Options{Mountpoint: "/mnt/point", Backend: backend, Device: device,
			Config: &config.Config{Node: "n", SessionTTL: 5 * time.Second}})
		if err == nil || !strings.Contains(err.Error(), "/mnt/point") {
			t.Errorf("%s: %v", what, err)
		}
		if err := device.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: the device is left open (%v)", what, err)
		}
	}
}

// A plain user mounts with fusermount3. That opens /dev/fuse as the user, who
// may not do that on every test machine; so the server sees a /dev/fuse of its
// own, with the usual mode, in a mount namespace of its own.
func TestMountAsPlainUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user, so it must run as root")
	}
	point, dir := freePoint(t), t.TempDir()
	must(t, os.Chown(point, 65534, 65534))
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Mkdir(dir+"/state", 0o700))
	must(t, os.Chown(dir+"/state", 65534, 65534))
	copyFile(t, os.Args[0], dir+"/server")
	const plain = "exec setpriv --reuid=65534 --regid=65534 --clear-groups "
	must(t, os.WriteFile(dir+"/start", []byte("#!/bin/sh -e\ncd "+dir+"\nmknod -m 666 fuse c 10 229\n"+
		"mount --bind fuse /dev/fuse\n"+plain+"./server\n"), 0o755))
	p := serve(t, serving{Mountpoint: point, Directory: dir + "/state"}, dir+"/start",
		&syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS})
	pid := fmt.Sprint(p.cmd.Process.Pid)
	x := point + "/x"
	out, err := exec.Command("nsenter", "-t", pid, "-m", "sh", "-c",
		plain+"sh -c 'echo hello >"+x+"; flock -n "+x+" cat "+x+"; stat -f -c %T "+point+"'").CombinedOutput()
	if string(out) != "hello\nfuseblk\n" {
		t.Errorf("%q (%v)", out, err)
	}
	must(t, p.stop())
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err)
	must(t, out.Close())
}
