package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMountHelper: the names and arguments under which mount(8) calls.
func TestMountHelper(t *testing.T) {
	for _, args := range [][]string{
		{"mount.lockfs", "none", "POINT", "-o", "rw,config=CONFIG,x-systemd.automount"},
		{"/sbin/mount.fuse.lockfs", "none", "POINT", "-s", "-n", "-v", "-N", "/x", "-o", "rw,config=CONFIG", "-t", "fuse.lockfs"},
		{"lockfs", "none", "POINT", "-o", "rw,dev,suid,config=CONFIG,noexec"},
	} {
		p := newPlace(t)
		for i := range args {
			args[i] = strings.NewReplacer("POINT", p.point, "CONFIG", p.config).Replace(args[i])
		}
		p.finish(p.command(args[0], args[1:]...), 0)
		p.locks()
		p.expect(0, "umount", p.point)
	}
	p := newPlace(t)
	p.finish(p.command("mount.lockfs", "none", p.point, "-f", "-o", "config="+p.config), 0)
	if p.mounted() {
		t.Error("a fake mount mounted")
	}
	p.finish(p.command("mount.lockfs", p.point), 2)
}

// TestMountFUSE3 is how mount(8) calls for the type fuse.lockfs: through
// mount.fuse3. (mount(8) itself would look for lockfs in the system's
// directories only, where a test has no business.)
func TestMountFUSE3(t *testing.T) {
	p := newPlace(t)
	bin := filepath.Join(p.dir, "bin")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(os.Args[0], filepath.Join(bin, "lockfs"))); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/sbin/mount.fuse3", "none", p.point, "-o", "rw,config="+p.config+",_netdev,noexec", "-t", "fuse.lockfs")
	c.Env = append(os.Environ(), envMain+"=1", "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.locks()
	if out, err := exec.Command("umount", p.point).CombinedOutput(); err != nil {
		t.Errorf("umount(8): %v: %s", err, out)
	}
	p.gone(p.pids()[0])
}

// TestMountAgainAtOnce: the daemon of a mount that umount(8) has ended leaves the next one alone, though that
// comes before it has gone.
func TestMountAgainAtOnce(t *testing.T) {
	p := newPlace(t)
	for range 10 {
		p.expect(0, "mount", "-c", p.config, p.point)
		pids := p.pids()
		pid := pids[len(pids)-1]
		if out, err := exec.Command("umount", p.point).CombinedOutput(); err != nil {
			t.Fatalf("umount(8): %v: %s", err, out)
		}
		p.expect(0, "mount", "-c", p.config, p.point)
		p.gone(pid)
		if !p.mounted() {
			t.Fatal("the new mount was taken away with the old one")
		}
		p.expect(0, "umount", p.point)
	}
}
