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
