package mountpoint

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAttachAbortDetach: nobody serves the mount, and nothing here waits for it.
func TestAttachAbortDetach(t *testing.T) {
	point := t.TempDir()
	device, err := Attach(Attachment{Point: point, Source: "lockfs", Subtype: "lockfs", MaxRead: 1 << 20, Options: []string{"default_permissions", "noexec"}})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	m, found, err := Find(point)
	if err != nil || !found || !m.IsLockfs() || m.Source != "lockfs" || m.ID == 0 || m.Ledger().ID != m.ID || m.Ledger().Minor == 0 {
		t.Fatalf("%+v, %v, %v", m, found, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	waits := make(chan error, 1)
	go func() {
		_, err := os.ReadDir(point)
		waits <- err
	}()
	select {
	case err := <-waits:
		t.Fatalf("answered without a server: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := m.Abort(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waits:
		if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("who waited got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("who waited still waits")
	}
	other := m
	other.ID++
	if err := other.Detach(); err != nil {
		t.Error(err)
	}
	if _, found, _ := Find(point); !found {
		t.Error("another mount than meant was taken away")
	}
	if err := m.Detach(); err != nil {
		t.Error(err)
	}
	if _, found, _ := Find(point); found {
		t.Error("still mounted")
	}
}

func TestAttachFails(t *testing.T) {
	if _, err := Attach(Attachment{Point: "/nonexistent/lockfs", Source: "lockfs", Subtype: "lockfs"}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestReplace: while the dead mount is replaced nobody gets to see the directory below.
func TestReplace(t *testing.T) {
	point := t.TempDir()
	below := point + "/below"
	if err := os.WriteFile(below, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := Attachment{Point: point, Source: "lockfs", Subtype: "lockfs", AllowOther: true, MaxRead: 1 << 20, Options: []string{"default_permissions", "noexec"}}
	device, err := Attach(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(point, unix.MNT_DETACH) == nil {
		}
	})
	first, _, err := Find(point)
	if err != nil {
		t.Fatal(err)
	}
	_ = device.Close() // dead
	seen := make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			_, err := os.Stat(below)
			if err == nil || n > 0 && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
				seen <- err
				return
			}
		}
	}()
	for range 20 {
		if device, err = Replace(a, first); err != nil {
			t.Fatal(err)
		}
		now, found, err := Find(point)
		if err != nil || !found || now.ID == first.ID || now.Type != first.Type || now.Source != first.Source {
			t.Fatalf("%+v after %+v, %v, %v", now, first, found, err)
		}
		first = now
		_ = device.Close()
	}
	if err := first.Detach(); err != nil {
		t.Fatal(err)
	}
	if _, found, _ := Find(point); found {
		t.Error("mounts are left")
	}
	select {
	case err := <-seen:
		if err == nil {
			return // only now, that all mounts are gone
		}
		t.Errorf("stat said %v", err)
	case <-time.After(10 * time.Second):
		t.Error("stat hangs")
	}
}
