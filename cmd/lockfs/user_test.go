package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envPrivate marks the run of TestPlainUser that has the mounts to itself.
const envPrivate = "LOCKFS_TEST_PRIVATE"

// TestPlainUser mounts by fusermount3, as one who has no rights. Every user
// may open /dev/fuse on a usual machine, but not in every container, so the
// test runs again in a mount name space of its own, with such a device.
func TestPlainUser(t *testing.T) {
	if os.Getenv(envPrivate) != "" {
		plainUser(t)
		return
	}
	if os.Geteuid() != 0 {
		return // then all tests of this package are run by a plain user
	}
	c := exec.Command(os.Args[0], "-test.run", "^TestPlainUser$", "-test.timeout", "2m")
	c.Env = append(os.Environ(), envPrivate+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func plainUser(t *testing.T) {
	const nobody = 65534
	p := newPlace(t)
	device, program := filepath.Join(p.dir, "fuse"), filepath.Join(p.dir, "lockfs")
	err := errors.Join(
		unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 229))), os.Chmod(device, 0o600),
		unix.Mount(device, "/dev/fuse", "", unix.MS_BIND, ""),
		copyFile(os.Args[0], program), os.Chmod(filepath.Dir(p.dir), 0o755), os.Chmod(p.dir, 0o755),
		os.Chown(p.point, nobody, nobody), os.Chown(p.dir+"/state", nobody, nobody), os.Chmod(p.config, 0o644),
		os.WriteFile(p.log, nil, 0o600), os.Chown(p.log, nobody, nobody))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/dev/fuse", unix.MNT_DETACH) })
	as := func(args ...string) *exec.Cmd {
		c := p.command("lockfs", args...)
		c.Path = program
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return c
	}
	mount := func() *exec.Cmd { return as("mount", "-c", p.config, p.point) }
	if out := p.finish(mount(), 1); !strings.HasPrefix(out, "lockfs: FUSE is not available: /dev/fuse may not be opened by user 65534;") || strings.Count(out, "\n") != 1 {
		t.Errorf("without rights on the device: %q", out)
	}
	if err := os.Chmod(device, 0o666); err != nil {
		t.Fatal(err)
	}
	c := mount()
	c.Env = append(c.Env, "PATH=/nonexistent")
	if out := p.finish(c, 1); out != "lockfs: user 65534 may not mount: fusermount3 is missing; install the package fuse3, or mount as root\n" {
		t.Errorf("without fusermount3: %q", out)
	}

	p.finish(mount(), 0)
	if !p.mounted() {
		t.Fatal("not mounted")
	}
	p.finish(as("umount", p.point), 0)
	p.gone(p.pids()[0])

	p.finish(mount(), 0)
	p.crash()
	if out := p.finish(mount(), 0); !strings.Contains(out, "took away a mount") {
		t.Errorf("over the dead mount: %q", out)
	}
	p.signal(p.pids()[2], syscall.SIGTERM)
	if p.mounted() {
		t.Error("still mounted")
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
