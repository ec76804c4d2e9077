package fs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// check fails the test unless err is (or wraps) the errno wanted, 0 being none.
func check(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if want == 0 {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	} else if !errors.Is(err, want) {
		t.Errorf("%s: %v, not %v", what, err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	c := mount(t, 2)
	a, b := c.nodes[0], c.nodes[1]

	must(t, os.Mkdir(a+"/etl", 0o750))
	check(t, "mkdir again, elsewhere", os.Mkdir(b+"/etl", 0o750), syscall.EEXIST)
	must(t, os.WriteFile(a+"/etl/nightly", []byte("hello"), 0o640))
	got, err := os.ReadFile(b + "/etl/nightly")
	if string(got) != "hello" {
		t.Errorf("read %q (%v) on the other node", got, err)
	}
	for _, name := range []string{"\x01\xff\xfe", "späß", " ", "...", "a\nb", strings.Repeat("x", 255)} {
		must(t, os.WriteFile(a+"/etl/"+name, nil, 0o600))
	}
	entries, err := os.ReadDir(b + "/etl")
	if len(entries) != 7 {
		t.Errorf("%d entries (%v): %v", len(entries), err, entries)
	}
	_, err = os.Stat(a + "/" + strings.Repeat("x", 256))
	check(t, "stat of a long component", err, syscall.ENAMETOOLONG)
	deep := a
	for range 4 {
		deep += "/" + strings.Repeat("d", 250)
		must(t, os.Mkdir(deep, 0o777))
	}
	check(t, "mkdir of a long name", os.Mkdir(deep+"/"+strings.Repeat("e", 250), 0o777), syscall.ENAMETOOLONG)

	check(t, "rmdir of a full directory", os.Remove(b+"/etl"), syscall.ENOTEMPTY)
	check(t, "unlink of a directory", syscall.Unlink(b+"/etl"), syscall.EISDIR)
	check(t, "rmdir of a file", syscall.Rmdir(b+"/etl/nightly"), syscall.ENOTDIR)
	check(t, "fifo", syscall.Mkfifo(a+"/fifo", 0o600), syscall.EPERM)
	check(t, "device", syscall.Mknod(a+"/dev", syscall.S_IFCHR|0o600, 0), syscall.EPERM)
	check(t, "mknod", syscall.Mknod(a+"/plain", syscall.S_IFREG|0o600, 0), 0)
	check(t, "mknod again", syscall.Mknod(b+"/plain", syscall.S_IFREG|0o600, 0), syscall.EEXIST)
	must(t, os.Symlink("etl/nightly", a+"/sym"))
	if target, err := os.Readlink(b + "/sym"); target != "etl/nightly" {
		t.Errorf("readlink %q (%v)", target, err)
	}
}

func stat(t *testing.T, path string) (st syscall.Stat_t) {
	t.Helper()
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func TestLinkAsDotlockProgramsDo(t *testing.T) {
	c := mount(t, 2)
	for i := range 50 {
		tmp, lock := c.on(i%2, "tmp"), c.on(i%2, "lock")
		fd, err := retried(func() (int, error) { // its lock may be another node's for a moment yet
			return syscall.Open(tmp, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY, 0o600)
		})
		must(t, err)
		must(t, syscall.Link(tmp, lock))
		var byFd syscall.Stat_t
		must(t, syscall.Fstat(fd, &byFd))
		if st := stat(t, lock); byFd.Nlink != 2 || st.Nlink != 2 || st.Ino != byFd.Ino {
			t.Fatalf("round %d: links %d and %d, inodes %d and %d", i, byFd.Nlink, st.Nlink, byFd.Ino, st.Ino)
		}
		syscall.Close(fd)
		must(t, os.Remove(tmp))
		if st := stat(t, lock); st.Nlink != 1 {
			t.Fatalf("%d links after unlink of the other name", st.Nlink)
		}
		other := c.on((i+1)%2, "other")
		must(t, os.WriteFile(other, nil, 0o600))
		check(t, "link over the lock", syscall.Link(other, c.on((i+1)%2, "lock")), syscall.EEXIST)
		must(t, os.Remove(other))
		must(t, os.Remove(lock))
	}
}

func TestRename(t *testing.T) {
	c := mount(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	must(t, os.WriteFile(a+"/one", []byte("1"), 0o600))
	must(t, os.WriteFile(a+"/two", []byte("2"), 0o600))
	check(t, "rename without replacing", unix.Renameat2(unix.AT_FDCWD, a+"/one", unix.AT_FDCWD, a+"/two", unix.RENAME_NOREPLACE), syscall.EEXIST)
	check(t, "exchange", unix.Renameat2(unix.AT_FDCWD, a+"/one", unix.AT_FDCWD, a+"/two", unix.RENAME_EXCHANGE), syscall.EINVAL)

	// Over an open file: its descriptor keeps the old contents.
	old, err := os.Open(a + "/two")
	must(t, err)
	defer old.Close()
	must(t, os.Rename(a+"/one", a+"/two"))
	buf := make([]byte, 10)
	if n, err := old.ReadAt(buf, 0); string(buf[:n]) != "2" {
		t.Errorf("the replaced file reads %q (%v)", buf[:n], err)
	}
	if got, err := os.ReadFile(b + "/two"); string(got) != "1" {
		t.Errorf("the new file reads %q (%v)", got, err)
	}

	// A held name can't be moved away, on either node; over a held name is fine.
	held, err := os.Open(a + "/two")
	must(t, err)
	defer held.Close()
	must(t, syscall.Flock(int(held.Fd()), syscall.LOCK_SH))
	check(t, "rename of a held name", os.Rename(a+"/two", a+"/three"), syscall.EBUSY)
	check(t, "rename of a held name elsewhere", os.Rename(b+"/two", b+"/three"), syscall.EBUSY)
	must(t, os.WriteFile(b+"/new", []byte("3"), 0o600))
	check(t, "rename over a held name", os.Rename(b+"/new", b+"/two"), 0)
	f, err := os.Open(b + "/two")
	must(t, err)
	defer f.Close()
	check(t, "lock on the name replaced", syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
	must(t, syscall.Flock(int(held.Fd()), syscall.LOCK_UN))
	check(t, "lock after the holder let go", syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), 0)

	must(t, os.MkdirAll(a+"/dir/sub", 0o700))
	check(t, "rename of a full directory", os.Rename(a+"/dir", a+"/elsewhere"), syscall.EXDEV)
	must(t, os.Remove(a+"/dir/sub"))
	check(t, "rename of an empty directory", os.Rename(a+"/dir", a+"/elsewhere"), 0)
	must(t, os.WriteFile(a+"/elsewhere/x", nil, 0o600))
}

func TestRemovedOpenFile(t *testing.T) {
	c := mount(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	f, err := os.OpenFile(a+"/x", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("before")
	must(t, err)
	must(t, os.Remove(a+"/x"))
	_, err = f.WriteString(" and after")
	must(t, err)
	buf := make([]byte, 100)
	n, _ := f.ReadAt(buf, 0)
	if string(buf[:n]) != "before and after" {
		t.Errorf("read %q", buf[:n])
	}
	st, err := f.Stat()
	must(t, err)
	if s := st.Sys().(*syscall.Stat_t); s.Nlink != 0 || s.Size != int64(n) {
		t.Errorf("%d links, %d bytes", s.Nlink, s.Size)
	}
	must(t, f.Truncate(3))
	if _, err := os.Stat(b + "/x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}

	// Removed on the other node.
	must(t, os.WriteFile(a+"/y", []byte("gone"), 0o600))
	g, err := os.Open(a + "/y")
	must(t, err)
	defer g.Close()
	must(t, os.Remove(b+"/y"))
	_, err = g.ReadAt(buf, 0)
	check(t, "read of what another node removed", err, syscall.ESTALE)
	// The name is free at once for who opens it, though the kernel may still know it.
	_, err = os.Open(a + "/y")
	check(t, "open of what another node removed", err, syscall.ENOENT)
	must(t, os.WriteFile(a+"/y", []byte("new"), 0o600))
}

func TestAttributes(t *testing.T) {
	c := mount(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	if st := stat(t, a); st.Mode != syscall.S_IFDIR|0o1777 {
		t.Errorf("the root has mode %o", st.Mode)
	}
	defer syscall.Umask(syscall.Umask(0o027))
	must(t, os.WriteFile(a+"/x", []byte("12345"), 0o666))
	if st := stat(t, b+"/x"); st.Mode != syscall.S_IFREG|0o640 || st.Size != 5 || st.Nlink != 1 {
		t.Errorf("mode %o, %d bytes, %d links", st.Mode, st.Size, st.Nlink)
	}
	must(t, os.Chmod(b+"/x", 0o600))
	must(t, os.Chown(b+"/x", 12, 34))
	must(t, syscall.UtimesNano(b+"/x", []syscall.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9, Nsec: 2}}))
	must(t, os.Truncate(b+"/x", 2))
	must(t, syscall.UtimesNano(b+"/x", []syscall.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9, Nsec: 2}}))
	st := stat(t, a+"/x")
	if st.Mode != syscall.S_IFREG|0o600 || st.Uid != 12 || st.Gid != 34 || st.Size != 2 || st.Atim.Nsec != 1 || st.Mtim.Nsec != 2 {
		t.Errorf("%+v", st)
	}
	must(t, os.Mkdir(a+"/g", 0o777))
	must(t, os.Chown(a+"/g", 0, 77))
	must(t, os.Chmod(a+"/g", 0o777|os.ModeSetgid))
	must(t, os.WriteFile(a+"/g/f", nil, 0o666))
	must(t, os.Mkdir(a+"/g/d", 0o777))
	if f, d := stat(t, a+"/g/f"), stat(t, a+"/g/d"); f.Gid != 77 || d.Gid != 77 || d.Mode&syscall.S_ISGID == 0 {
		t.Errorf("setgid directory: file's group %d, directory's %d mode %o", f.Gid, d.Gid, d.Mode)
	}
	var fs syscall.Statfs_t
	must(t, syscall.Statfs(a, &fs))
	if fs.Namelen != 255 || fs.Bavail == 0 {
		t.Errorf("statfs: %+v", fs)
	}
}

func TestContents(t *testing.T) {
	c := mount(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	big := strings.Repeat("0123456789abcdef", 32<<10)
	must(t, os.WriteFile(a+"/big", []byte(big), 0o600))
	if got, err := os.ReadFile(b + "/big"); string(got) != big {
		t.Errorf("%d bytes (%v)", len(got), err)
	}
	f, err := os.OpenFile(a+"/big", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("x"), int64(len(big)))
	check(t, "write beyond the limit", err, syscall.EFBIG)
	_, err = f.WriteAt([]byte(strings.Repeat("y", 3<<20)), 0)
	check(t, "a large write", err, syscall.EFBIG)
	whole := strings.Repeat("z", len(big)+3*4096)
	for _, more := range []int{1, 4095, 4096, 4097, 2 * 4096} { // the kernel may cut these in two
		_, err = f.WriteAt([]byte(whole)[4095:][:len(big)+more], 0)
		check(t, fmt.Sprint("a write of ", more, " bytes too many"), err, syscall.EFBIG)
	}
	if got, err := os.ReadFile(b + "/big"); string(got) != big {
		t.Errorf("after writes that were refused: %d bytes (%v)", len(got), err)
	}
	_, err = f.WriteAt([]byte("x"), 1<<62)
	check(t, "write far beyond", err, syscall.EFBIG)
	check(t, "truncate beyond", f.Truncate(int64(len(big))+1), syscall.EFBIG)
	check(t, "truncate by name beyond", os.Truncate(a+"/big", 1<<40), syscall.EFBIG)
	check(t, "fsync", f.Sync(), 0)
	check(t, "fallocate", syscall.Fallocate(int(f.Fd()), 0, 0, int64(len(big))+1), syscall.EFBIG)
	check(t, "punch a hole", syscall.Fallocate(int(f.Fd()), 3, 0, 10), syscall.EOPNOTSUPP)
	_, err = syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(t, "shared writable mmap of a write-only descriptor", err, syscall.EACCES)
	f.Close()
	rw, err := os.OpenFile(a+"/big", os.O_RDWR, 0)
	must(t, err)
	_, err = syscall.Mmap(int(rw.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(t, "shared writable mmap", err, syscall.ENODEV)
	_, err = unix.IoctlGetTermios(int(rw.Fd()), unix.TCGETS)
	check(t, "ioctl", err, syscall.ENOTTY)
	must(t, syscall.Fallocate(int(rw.Fd()), 0, 0, 10))
	rw.Close()

	log, err := os.OpenFile(a+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(t, err)
	log.WriteString("a1 ")
	log.Close()
	log, err = os.OpenFile(b+"/log", os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	log.WriteString("b1 ")
	log.Close()
	if got, _ := os.ReadFile(a + "/log"); string(got) != "a1 b1 " {
		t.Errorf("appended %q", got)
	}
}

func TestManyNames(t *testing.T) {
	c := mount(t, 1)
	dir := c.on(0, "many")
	must(t, os.Mkdir(dir, 0o755))
	names := map[string]bool{}
	for i := range 2_000 {
		name := "lock" + strings.Repeat("x", i%20) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		names[name] = true
		must(t, syscall.Mknod(dir+"/"+name, syscall.S_IFREG|0o600, 0))
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		delete(names, e.Name())
	}
	if len(names) > 0 {
		t.Errorf("%d of them missing from %d entries", len(names), len(entries))
	}
}

func TestTokenAttribute(t *testing.T) {
	c := mount(t, 2)
	must(t, os.WriteFile(c.on(0, "x"), nil, 0o600))
	f, err := os.Open(c.on(0, "x"))
	must(t, err)
	defer f.Close()
	buf := make([]byte, 100)
	eventually(t, "no token for a free name", func() bool { // RELEASE of the write comes after its close
		_, err := unix.Getxattr(c.on(0, "x"), "user.lockfs.token", buf)
		return err == syscall.ENODATA
	})
	must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	n, err := unix.Fgetxattr(int(f.Fd()), "user.lockfs.token", buf)
	if err != nil || n == 0 || strings.Trim(string(buf[:n]), "0123456789") != "" {
		t.Errorf("token %q (%v)", buf[:max(n, 0)], err)
	}
	n, err = unix.Listxattr(c.on(0, "x"), buf)
	if string(buf[:max(n, 0)]) != "user.lockfs.token\x00" {
		t.Errorf("list %q (%v)", buf[:max(n, 0)], err)
	}
	_, err = unix.Getxattr(c.on(1, "x"), "user.lockfs.token", buf)
	check(t, "token on the other node", err, syscall.ENODATA)
	check(t, "set the token", unix.Setxattr(c.on(0, "x"), "user.lockfs.token", []byte("1"), 0), syscall.EPERM)
	check(t, "set another", unix.Setxattr(c.on(0, "x"), "user.other", []byte("1"), 0), syscall.EOPNOTSUPP)
}

// TestTokenOfAThread: any thread of a process is told the process's own token, though the last one given on the node is another's.
func TestTokenOfAThread(t *testing.T) {
	c := mount(t, 1)
	touch(t, c.on(0, "x"))
	f, err := os.Open(c.on(0, "x"))
	must(t, err)
	defer f.Close()
	must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_SH))
	token := func() (string, error) {
		buf := make([]byte, 100)
		n, err := unix.Fgetxattr(int(f.Fd()), tokenAttr, buf)
		return string(buf[:max(n, 0)]), err
	}
	own, err := token()
	must(t, err)

	other := exec.Command("flock", "--shared", c.on(0, "x"), "sh", "-c", "getfattr --only-values -n "+tokenAttr+" "+c.on(0, "x")+"; echo; cat")
	in, err := other.StdinPipe()
	must(t, err)
	out, err := other.StdoutPipe()
	must(t, err)
	must(t, other.Start())
	last, err := bufio.NewReader(out).ReadString('\n')
	if last = strings.TrimSpace(last); err != nil || last == "" || last == own {
		t.Errorf("the other reader's token is %q (%v), this one's %q", last, err, own)
	}
	check := func() {
		if got, err := token(); err != nil || got != own {
			t.Errorf("thread %d of process %d was told %q (%v), its process has %s", unix.Gettid(), os.Getpid(), got, err, own)
		}
	}
	runtime.LockOSThread() // so that one of the two is not the first thread of the process
	defer runtime.UnlockOSThread()
	check()
	var second sync.WaitGroup
	second.Go(func() {
		runtime.LockOSThread() // ends with its goroutine
		check()
	})
	second.Wait()
	must(t, in.Close())
	must(t, other.Wait())
}
