package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Names of any bytes, stored and listed exactly, and never one for another.
func TestOddNames(t *testing.T) {
	t.Parallel()
	names := []string{" ", "  ", "-rf", "a b", "a%20b", "a%b", "%", "%2F", "*", "?", "[x]", "{x}", "a:b", "a\nb", "a\\b", "\"", "'", "~",
		"\x01", "\xff\xfe", "caf\u00e9", "cafe\u0301", "日本語", "🔒", "...", "..a", ".hidden", "CASE", "case", "n", "nn", "locks", "sessions",
		"#tag", "$HOME", "a_b_c_0000000001", strings.Repeat("x", 255), strings.Repeat("é", 127) + "x", strings.Repeat("\xff", 255)}
	forEachBackend(t, func(t *testing.T, e *env) {
		for i, name := range names {
			f, err := os.OpenFile(e.on(i%2, name), rdwr|creat|excl|nonblock, 0o644)
			if err != nil {
				t.Errorf("%q: %v", name, err)
				continue
			}
			_, err = f.WriteString(name)
			must(t, errors.Join(err, f.Close()))
		}
		for node := range 2 {
			entries, err := os.ReadDir(e.on(node, ""))
			must(t, err)
			var listed []string
			for _, entry := range entries {
				listed = append(listed, entry.Name())
			}
			expected := slices.Sorted(slices.Values(names))
			if slices.Sort(listed); !slices.Equal(listed, expected) {
				t.Errorf("node %d lists %q, want %q", node, listed, expected)
			}
			for _, name := range names {
				if data, err := os.ReadFile(e.on(node, name)); string(data) != name {
					t.Errorf("%q holds %q (%v)", name, data, err)
				}
			}
		}
		for i, name := range names {
			must(t, syscall.Unlink(e.on((i+1)%2, name)))
		}
	})
}

func TestNameTooLong(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		long := strings.Repeat("x", 255)
		_, err := os.OpenFile(e.on(0, long+"x"), rdonly|creat, 0o644)
		want(t, "a component of 256 bytes", err, syscall.ENAMETOOLONG)
		dir := ""
		for range 3 {
			dir = filepath.Join(dir, long)
			must(t, os.Mkdir(e.on(0, dir), 0o755))
		}
		longest := filepath.Join(dir, long) // 4 × 255 + 3 = 1,023 bytes
		must(t, os.Mkdir(e.on(1, longest), 0o755))
		want(t, "a name of 1,025 bytes", os.Mkdir(e.on(1, longest+"/x"), 0o755), syscall.ENAMETOOLONG)
		if entries, err := os.ReadDir(e.on(0, dir)); err != nil || len(entries) != 1 {
			t.Errorf("listed: %v (%v)", entries, err)
		}
	})
}

// What one node creates, every node sees; directories are there for order.
func TestDirectories(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		must(t, os.Mkdir(e.on(0, "etl"), 0o755))
		must(t, os.Mkdir(e.on(1, "etl/sub"), 0o755))
		must(t, os.WriteFile(e.on(0, "etl/nightly"), []byte("1"), 0o644))
		if data, err := os.ReadFile(e.on(1, "etl/nightly")); string(data) != "1" {
			t.Errorf("the other node reads %q (%v)", data, err)
		}
		want(t, "mkdir of what is there", os.Mkdir(e.on(1, "etl"), 0o755), syscall.EEXIST)
		want(t, "rmdir of what is not empty", syscall.Rmdir(e.on(1, "etl")), syscall.ENOTEMPTY)
		want(t, "unlink of a directory", syscall.Unlink(e.on(1, "etl")), syscall.EISDIR)
		want(t, "rmdir of a file", syscall.Rmdir(e.on(1, "etl/nightly")), syscall.ENOTDIR)
		must(t, os.Remove(e.on(1, "etl/sub")))
		must(t, os.Remove(e.on(1, "etl/nightly")))
		eventually(t, "the first node sees it", func() bool {
			_, err := os.Stat(e.on(0, "etl/nightly"))
			return errors.Is(err, os.ErrNotExist)
		})
		must(t, os.Remove(e.on(0, "etl")))
		_, err := os.OpenFile(e.on(1, "etl/x"), rdonly|creat, 0o644)
		want(t, "create in a directory that is gone", err, syscall.ENOENT)
		must(t, os.Symlink("target", e.on(0, "link")))
		if target, err := os.Readlink(e.on(1, "link")); target != "target" {
			t.Errorf("readlink: %q (%v)", target, err)
		}
		want(t, "device nodes", syscall.Mknod(e.on(0, "dev"), syscall.S_IFCHR|0o600, 0x103), syscall.EPERM)
	})
}

// Mode, owner and group are kept and checked by the kernel.
func TestModeAndOwner(t *testing.T) {
	t.Parallel()
	const nobody = 65534
	forEachBackend(t, func(t *testing.T, e *env) {
		if st := stat(t, e.on(0, "")); st.Mode&0o7777 != 0o1777 {
			t.Errorf("the root's mode is %o", st.Mode&0o7777)
		}
		must(t, os.WriteFile(e.on(0, "x"), []byte("text"), 0o600))
		must(t, os.Chown(e.on(0, "x"), 7, 8))
		must(t, os.Chmod(e.on(0, "x"), 0o640))
		eventually(t, "the other node sees mode and owner", func() bool {
			st := stat(t, e.on(1, "x"))
			return st.Mode&0o7777 == 0o640 && st.Uid == 7 && st.Gid == 8
		})
		b := e.client(t, 1)
		want(t, "setuid", b.call("setuid", nobody).err(), 0)
		want(t, "nobody opens a file that is not its", b.tryOpen("x", rdonly), syscall.EACCES)
		y := b.open("y", rdwr|creat|excl)
		if st := stat(t, e.on(0, "y")); st.Uid != nobody {
			t.Errorf("a new file belongs to %d", st.Uid)
		}
		y.close()
		want(t, "the root is sticky", b.call("unlink", filepath.Join(b.dir, "x")).err(), syscall.EPERM)
		want(t, "one's own file", b.call("unlink", filepath.Join(b.dir, "y")).err(), 0)
	})
}

// Two hard links of one file are two locks.
func TestHardLinksAreTwoLocks(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdonly|creat)
			must(t, os.Link(filepath.Join(a.dir, "x"), filepath.Join(a.dir, "y")))
			y := b.open("y", rdonly)
			want(t, "one name", x.flock(ex), 0)
			want(t, "the other name", y.flock(ex|nb), 0)
			want(t, "the first name, by the other node", b.open("x", rdonly).flock(sh|nb), eagain)
			want(t, "the second name, by the first node", a.open("y", rdonly).flock(sh|nb), eagain)
		})
	})
}

// Unlinking a held lock file removes the file, not the lock.
func TestUnlinkOfAHeldFile(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", wronly|creat)
			must(t, os.Remove(filepath.Join(b.dir, "x")))
			_, err := os.Stat(filepath.Join(b.dir, "x"))
			want(t, "the file", err, syscall.ENOENT)
			want(t, "a newcomer for writing", b.tryOpen("x", wronly|creat|nonblock), eagain)
			y := b.open("x", rdonly|creat)
			want(t, "a newcomer by flock", y.flock(ex|nb), eagain)
			waits := y.beginFlock(ex).blocked()
			x.write("to nobody")
			x.close()
			want(t, "the newcomer, after the holder's close", waits.wait().err(), 0)
			if got := y.read(); got != "" {
				t.Errorf("the new file holds %q", got)
			}
		})
	})
}

// no_write_permission: skip: who may not write the lock file gets success and no lock.
func TestNoWritePermission(t *testing.T) {
	t.Parallel()
	const nobody = 65534
	for _, policy := range []string{"skip", "lock"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			forEachBackend(t, func(t *testing.T, e *env) {
				must(t, os.WriteFile(e.on(0, "x"), nil, 0o644))
				must(t, os.Chmod(e.on(0, "x"), 0o644))
				a, b, other := e.client(t, 0), e.client(t, 1), e.client(t, 1)
				want(t, "setuid", b.call("setuid", nobody).err(), 0)
				x := a.open("x", rdonly)
				want(t, "root's lock", x.flock(ex), 0)
				y := b.open("x", rdonly)
				result := map[string]syscall.Errno{"skip": 0, "lock": eagain}[policy]
				want(t, "flock without permission, beside a holder", y.flock(ex|nb), result)
				want(t, "fcntl without permission, beside a holder", y.fcntl(setlk, rd, 0, 1), result)
				want(t, "unlock", x.flock(un), 0)
				want(t, "flock without permission", y.flock(ex|nb), 0)
				want(t, "beside it", other.open("x", rdonly).flock(ex|nb), result)
			}, fmt.Sprintf("no_write_permission: %s", policy))
		})
	}
}
