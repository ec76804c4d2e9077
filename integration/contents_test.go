package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The next holder reads what the last one wrote, through a descriptor that was open all the while too.
func TestContentsGoWithTheLock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		e.pairs(t, func(t *testing.T, a, b *client) {
			x := a.open("x", rdwr|creat)
			want(t, "the first holder", x.flock(ex), 0)
			y := b.open("x", rdwr)
			if got := y.read(); got != "" {
				t.Errorf("a new file holds %q", got)
			}
			for i := range 10 {
				waits := y.beginFlock(ex).blocked()
				text := fmt.Sprintf("%s, round %d", strings.Repeat("long ", 10-i), i)
				want(t, "truncate", x.c.call("ftruncate", x.fd, 0).err(), 0)
				want(t, "pwrite", x.c.call("pwritetext", x.fd, text, 0).err(), 0)
				want(t, "unlock", x.flock(un), 0)
				want(t, "the next holder", waits.wait().err(), 0)
				if got := y.read(); got != text {
					t.Fatalf("the next holder reads %q, want %q", got, text)
				}
				x, y = y, x
			}
			y.close()
			x.close()
		})
	})
}

// Up to 512 KiB; beyond EFBIG, and nothing is lost.
func TestContentsHaveALimit(t *testing.T) {
	t.Parallel()
	const limit = 512 << 10
	forEachBackend(t, func(t *testing.T, e *env) {
		data := bytes.Repeat([]byte("0123456789abcdef"), limit/16)
		must(t, os.WriteFile(e.on(0, "x"), data, 0o644))
		got, err := os.ReadFile(e.on(1, "x"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("the other node reads %d bytes, want %d (%v)", len(got), limit, err)
		}
		f, err := os.OpenFile(e.on(1, "x"), wronly|appendTo, 0)
		must(t, err)
		_, err = f.Write([]byte("x"))
		want(t, "one byte more", err, syscall.EFBIG)
		want(t, "truncate beyond", f.Truncate(limit+1), syscall.EFBIG)
		must(t, f.Close())
		if got := stat(t, e.on(1, "x")).Size; got != limit {
			t.Errorf("its size is %d", got)
		}
	})
}

func TestNoSharedWritableMmap(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		c := e.client(t, 0)
		x := c.open("x", rdwr|creat)
		x.write("text")
		want(t, "shared and writable", c.call("mmap", x.fd, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED).err(), syscall.ENODEV)
		want(t, "private", c.call("mmap", x.fd, unix.PROT_READ, unix.MAP_PRIVATE).err(), 0)
	})
}

// Appends from both nodes, each by a holder, are all there.
func TestAppend(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		for i := range 20 {
			f, err := os.OpenFile(e.on(i%2, "log"), wronly|creat|appendTo, 0o644)
			must(t, err)
			_, err = fmt.Fprintln(f, i)
			must(t, errors.Join(err, f.Sync(), f.Close()))
		}
		data, err := os.ReadFile(e.on(1, "log"))
		if lines := strings.Fields(string(data)); len(lines) != 20 || lines[19] != "19" {
			t.Errorf("the log holds %q (%v)", lines, err)
		}
	})
}
