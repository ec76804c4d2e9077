package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockfs/backends/testserver"
)

// onFile is the file back end, onSmallDisk Redis with its log; both on a small file system of their own.
const (
	onFile      = "file"
	onSmallDisk = "smalldisk"
)

// disk is a small file system. The directory in it is the server of a cluster on the file back end.
type disk struct {
	at  string
	dir string
}

// newDisk mounts one. It ends with the test.
func newDisk(t testing.TB) disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small file system to fill")
	}
	d := disk{at: t.TempDir()}
	d.dir = filepath.Join(d.at, "lockfs")
	if err := unix.Mount("tmpfs", d.at, "tmpfs", 0, "size=16m,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(d.at, unix.MNT_DETACH) == nil { // more than once where it is read-only
		}
	})
	return d
}

// Addr is nothing: there is no server.
func (d disk) Addr() string { return "" }

// Dir is the directory.
func (d disk) Dir() string { return d.dir }

// Stop does nothing: there is no server to stop.
func (d disk) Stop() {}

// Start does nothing either.
func (d disk) Start() {}

func (d disk) entry([]string) string {
	return fmt.Sprintf("{type: file, config: {path: %q}}", d.dir)
}

// left names the states of locks that are there.
func (d disk) left() (left []string, err error) {
	states, err := filepath.Glob(filepath.Join(d.dir, "="+clusterName, "boot-*", "locks"))
	if err != nil || len(states) != 1 {
		return nil, fmt.Errorf("%d directories of locks below %s: the layout has changed (%w)", len(states), d.dir, err)
	}
	entries, err := os.ReadDir(states[0])
	for _, e := range entries {
		left = append(left, e.Name())
	}
	return left, err
}

// fill leaves no space on it, and again when some comes free, for so long. then is called at the end of that.
func (d disk) fill(during time.Duration, then func()) error {
	filler := filepath.Join(d.at, "filler")
	f, err := os.OpenFile(filler, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	full := false
	for end := time.Now().Add(during); time.Now().Before(end); {
		if _, err = f.Write(page); err == nil {
			continue
		}
		if !errors.Is(err, unix.ENOSPC) {
			return errors.Join(err, os.Remove(filler))
		}
		full = true
		time.Sleep(time.Millisecond)
	}
	then()
	if err := os.Remove(filler); err != nil {
		return err
	}
	if !full {
		return errors.New("it was never full")
	}
	return nil
}

// diskOf is the disk under the server of a run.
func (r *run) diskOf() disk {
	if d, ok := r.cluster.server.(disk); ok {
		return d
	}
	return r.cluster.server.(smallDisk).disk
}

// fillDisk fills it for a while.
func fillDisk(r *run, _ *node, rng *rand.Rand) bool {
	refused := true
	during := between(rng, ttl/4, 3*ttl/2)
	s, isRedis := r.cluster.server.(smallDisk)
	if isRedis {
		during += ttl / 2 // until the page is full that its log writes to
	}
	err := r.diskOf().fill(during, func() {
		refused = !isRedis || strings.Contains(s.Command("INFO", "persistence"), "aof_last_write_status:err")
	})
	if err != nil {
		r.report("filling the disk: %v", err)
	}
	if isRedis && s.Command("PING") == "" {
		r.report("the server does not survive a full disk")
	}
	return refused
}

// readOnly makes the disk one that can only be read. Files are open for writing there, so this is a second mount on top.
func readOnly(r *run, _ *node, rng *rand.Rand) bool {
	at := r.diskOf().at
	err := unix.Mount(at, at, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		time.Sleep(between(rng, ttl/4, 3*ttl/2))
		err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
	}
	if err != nil {
		r.report("making the disk read-only: %v", err)
	}
	return true
}

// removeDir takes the directory away, in one step. No node is mounted or stands still meanwhile: one that learns of it late, or not at all, can let a second
// holder in (docs/reliability.md, 'The file back end').
func removeDir(r *run, _ *node, _ *rand.Rand) bool {
	for _, n := range r.nodes {
		n.busy.Lock()
		defer n.busy.Unlock()
	}
	d := r.diskOf()
	gone := d.dir + ".gone"
	if err := errors.Join(os.Rename(d.dir, gone), os.RemoveAll(gone)); err != nil {
		r.report("removing the directory: %v", err)
	}
	time.Sleep(ttl)
	return true
}

// smallDisk is a Redis whose log is on a disk.
type smallDisk struct {
	*testserver.RedisServer
	disk disk
}

func newSmallDisk(t testing.TB) smallDisk {
	d := newDisk(t)
	return smallDisk{testserver.Redis(t, "--dir", d.at, "--appendonly", "yes", "--appendfsync", "everysec"), d}
}

// fillMemory lets the server have no more memory for a while.
func fillMemory(r *run, _ *node, rng *rand.Rand) bool {
	s := r.cluster.server.(smallDisk)
	answer := s.Command("CONFIG", "SET", "maxmemory", "1")
	time.Sleep(between(rng, ttl/4, 3*ttl/2))
	answer += s.Command("CONFIG", "SET", "maxmemory", "0")
	if answer != "+OK\r\n+OK\r\n" {
		r.report("setting maxmemory: %q", answer)
	}
	return true
}
