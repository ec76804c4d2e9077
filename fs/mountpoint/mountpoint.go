// Package mountpoint looks after the place where lockfs is mounted: is it fit
// for a mount, does a mount there still live, and how is it taken away.
//
// Its one idea: a mount point may have a mount on it whose server is dead or
// frozen, so nothing here looks at the place before it has looked into the
// kernel's list of mounts, and asks a mount only with a time limit.
package mountpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What can be wrong with a mount point, to be tested with errors.Is. The
// errors that wrap them say which one and what to do.
var (
	ErrMissing    = errors.New("does not exist")
	ErrNotDir     = errors.New("is not a directory")
	ErrMounted    = errors.New("is a mount point already")
	ErrNotMounted = errors.New("is not mounted")
	ErrNotLockfs  = errors.New("is not a lockfs mount")
	ErrFrozen     = errors.New("is mounted, but its server does not answer")
	ErrBusy       = errors.New("is in use")
	ErrNoFUSE     = errors.New("FUSE is not available")
	ErrPermission = errors.New("may not mount")
)

// answerTime is how long a mount may take to answer a statfs before it counts as frozen.
const answerTime = 2 * time.Second

// State is what a mount does when it is asked something.
type State uint8

const (
	// Alive: it answers, or refuses this user, which is an answer, too.
	Alive State = iota
	// Dead: its server is gone ("Transport endpoint is not connected").
	Dead
	// Frozen: it doesn't answer.
	Frozen
)

// Probe asks the mount at path for a sign of life. statfs is never answered
// from the kernel's caches, as stat would be. A server that doesn't answer
// costs a goroutine until it does or the mount goes.
func Probe(path string) State { return probe(path, answerTime) }

func probe(path string, patience time.Duration) State {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-answer:
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			return Dead
		}
		return Alive
	case <-timer.C:
		return Frozen
	}
}

// Place is a mount point that is fit for a mount, and reserved for it.
type Place struct {
	// Path is absolute, symbolic links resolved.
	Path string
	// Cleared is the number of mounts of crashed servers that were taken away.
	Cleared int
	dir     *os.File
}

// Release ends the reservation, once the mount is there or given up.
func (p *Place) Release() {
	if p.dir != nil {
		_ = p.dir.Close() // nothing was written
	}
}

// Prepare makes sure that lockfs can be mounted at path, and keeps others from
// mounting lockfs there until Release. FUSE mounts left there by a crashed
// server are taken away.
func Prepare(path string) (*Place, error) {
	resolved, err := resolve(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing(path)
	case err != nil:
		return nil, err
	}
	p := &Place{Path: resolved}
	if err := p.clear(); err != nil {
		return nil, err
	}
	switch info, err := os.Stat(resolved); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing(resolved)
	case err != nil:
		return nil, fmt.Errorf("mount point %s: %w", resolved, err)
	case !info.IsDir():
		return nil, fmt.Errorf("mount point %s %w; name a directory", resolved, ErrNotDir)
	}
	if err := p.reserve(); err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

// reserve locks the directory below the mount to come. Of two that come here
// at the same time, the second finds the lock held, or, when the first is done, its mount.
func (p *Place) reserve() error {
	dir, err := os.OpenFile(p.Path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // a directory that its owner may not read can be mounted on all the same
	}
	p.dir = dir
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("mount point %s %w: another lockfs is about to mount there; wait for it, or choose another directory", p.Path, ErrMounted)
	}
	return p.clear()
}

func missing(path string) error {
	return fmt.Errorf("mount point %s %w; create it: mkdir -p %s", path, ErrMissing, path)
}

// clear takes dead FUSE mounts off the place, and refuses any other.
func (p *Place) clear() error {
	const deepest = 16 // mounts stacked; beyond it something puts them back
	path := p.Path
	for range deepest {
		m, found, err := Find(path)
		if err != nil || !found {
			return err
		}
		state := Alive
		if m.isFUSE() {
			state = Probe(path)
		}
		switch {
		case state == Dead:
			if err := detach(path); err != nil {
				return fmt.Errorf("mount point %s has a dead %s mount on it that can't be taken away: %w; try, as root: umount -l %s", path, m.Type, err, path)
			}
			p.Cleared++
		case state == Frozen:
			return fmt.Errorf("mount point %s %w (%s); look for its process, or take it away: lockfs umount -l %s", path, ErrFrozen, m.Type, path)
		case m.IsLockfs():
			return fmt.Errorf("mount point %s %w, of lockfs; use it, or unmount it first: lockfs umount %s", path, ErrMounted, path)
		default:
			return fmt.Errorf("mount point %s %w, of %s (%s); choose another directory", path, ErrMounted, m.Source, m.Type)
		}
	}
	return fmt.Errorf("mount point %s %w; more than %d dead mounts lie on it", path, ErrMounted, deepest)
}

// Unmount takes the lockfs mount off path. With lazy the path is free at once,
// and the mount ends when the last file on it is closed; without it a mount in
// use is ErrBusy. A dead or frozen mount can be unmounted, too.
func Unmount(path string, lazy bool) error {
	m, found, err := Find(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("mount point %s %w", path, ErrMissing)
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("%s %w; lockfs mounts are listed by: findmnt -t %s", path, ErrNotMounted, FSType)
	case !m.IsLockfs():
		return fmt.Errorf("%s %w but %s (%s); use umount", path, ErrNotLockfs, m.Source, m.Type)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err = unmount(m.Point, flags)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s %w; end what uses it (fuser -vm %s lists it), or: lockfs umount -l %s", path, ErrBusy, m.Point, path)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	return nil
}

// detach takes the topmost mount away lazily, whatever it is.
func detach(path string) error { return unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH) }

// unmount is umount2(2) where that is allowed, else fusermount3.
func unmount(point string, flags int) error {
	err := unix.Unmount(point, flags)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	helper, lookErr := fusermount()
	if lookErr != nil {
		return fmt.Errorf("%w (as %s; a plain user needs fusermount3, from the package fuse3)", err, user())
	}
	arguments := []string{"-u", "--", point}
	if flags&unix.MNT_DETACH != 0 {
		arguments = []string{"-u", "-z", "--", point}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, helper, arguments...)
	command.Env = append(os.Environ(), "LC_ALL=C")
	output, runErr := command.CombinedOutput()
	switch text := strings.TrimSpace(string(output)); {
	case runErr == nil:
		return nil
	case strings.Contains(text, unix.EBUSY.Error()): // its only way to tell
		return unix.EBUSY
	default:
		return fmt.Errorf("%s: %s: %w", helper, text, runErr)
	}
}

// CheckFUSE makes sure that this process can mount by FUSE at all.
func CheckFUSE() error { return checkFUSE("/dev/fuse") }

func checkFUSE(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close() // nothing was written
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: no %s; load the kernel module (modprobe fuse), in a container pass the device (--device /dev/fuse)", ErrNoFUSE, device)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s may not be opened by %s; in a container pass the device (--device /dev/fuse), else chmod 666 %s", ErrNoFUSE, device, user(), device)
	default:
		return fmt.Errorf("%w: %w", ErrNoFUSE, err)
	}
	if os.Geteuid() != 0 {
		if _, err := fusermount(); err != nil {
			return fmt.Errorf("%s %w: fusermount3 is missing; install the package fuse3, or mount as root", user(), ErrPermission)
		}
		return nil
	}
	if mayMount, err := hasCapSysAdmin(); err == nil && !mayMount {
		return fmt.Errorf("root %w here: the capability SYS_ADMIN is missing; in a container pass it (--cap-add SYS_ADMIN)", ErrPermission)
	}
	return nil
}

func fusermount() (string, error) {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		path, err = exec.LookPath("fusermount")
	}
	return path, err
}

func user() string {
	if uid := os.Geteuid(); uid != 0 {
		return "user " + strconv.Itoa(uid)
	}
	return "root"
}

// hasCapSysAdmin reads this process's effective capabilities.
func hasCapSysAdmin() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, err
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0, nil
}
