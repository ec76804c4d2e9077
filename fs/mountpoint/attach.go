package mountpoint

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Attachment says what to mount where. A server that takes the device over, or none, is a later matter.
type Attachment struct {
	// Point is the place, as Prepare returned it.
	Point string
	// Source and Subtype are how it shows in the list of mounts.
	Source, Subtype string
	// AllowOther lets other users in.
	AllowOther bool
	// MaxRead bounds a READ, in bytes.
	MaxRead int
	// Options are further options: noexec, exec, default_permissions.
	Options []string
}

// Attach opens /dev/fuse and mounts it; whoever touches the mount waits until a
// server answers on the device. The mount is dead when the last descriptor of the device is closed.
func Attach(a Attachment) (device *os.File, err error) {
	if os.Geteuid() == 0 {
		device, err = a.direct()
	} else {
		device, err = a.byHelper()
	}
	if err != nil {
		return nil, fmt.Errorf("mount lockfs on %s: %w", a.Point, err)
	}
	return device, nil
}

// direct mounts as root does.
func (a Attachment) direct() (*os.File, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open /dev/fuse", err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	options := []string{fmt.Sprintf("fd=%d", fd), fmt.Sprintf("rootmode=%o", unix.S_IFDIR),
		fmt.Sprintf("user_id=%d", os.Geteuid()), fmt.Sprintf("group_id=%d", os.Getegid()), fmt.Sprintf("max_read=%d", a.MaxRead)}
	if a.AllowOther {
		options = append(options, "allow_other")
	}
	for _, o := range a.Options {
		switch o {
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "exec":
			flags &^= unix.MS_NOEXEC
		default:
			options = append(options, o)
		}
	}
	if err := unix.Mount(a.Source, a.Point, "fuse."+a.Subtype, flags, strings.Join(options, ",")); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("mount", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// byHelper lets fusermount3 mount, which hands the descriptor over on a socket.
func (a Attachment) byHelper() (*os.File, error) {
	helper, err := fusermount()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := pair[0], os.NewFile(uintptr(pair[1]), "fusermount")
	defer unix.Close(ours) //nolint:errcheck // nothing was written
	options := append([]string{"fsname=" + a.Source, "subtype=" + a.Subtype, fmt.Sprintf("max_read=%d", a.MaxRead)}, a.Options...)
	if a.AllowOther {
		options = append(options, "allow_other")
	}
	command := exec.Command(helper, "-o", strings.Join(options, ","), "--", a.Point)
	command.Env = append(os.Environ(), "_FUSE_COMMFD=3", "LC_ALL=C")
	command.ExtraFiles = []*os.File{theirs}
	output, err := command.CombinedOutput()
	_ = theirs.Close() // so that the end of the helper is the end of the socket
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", helper, strings.TrimSpace(string(output)), err)
	}
	return receive(ours)
}

// receive takes a descriptor from a socket.
func receive(socket int) (*os.File, error) {
	data, control := make([]byte, 8), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, data, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("fusermount3 handed over no descriptor (%d messages, %v)", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("fusermount3 handed over %d descriptors: %w", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

// Abort ends the connection of a mount, which wakes everybody who waits for its server. m is what Find
// returned when it was mounted. It does not touch the mount.
func (m Mount) Abort() error {
	_, minor, _ := strings.Cut(m.Dev, ":")
	// A file system of the kernel's, seldom mounted in containers: root mounts it here for itself alone.
	dir := unix.AT_FDCWD
	path := "/sys/fs/fuse/connections/" + minor + "/abort"
	if _, err := os.Stat(path); err != nil && os.Geteuid() == 0 {
		fd, err := detachedMount("fusectl")
		if err != nil {
			return fmt.Errorf("abort the mount on %s: %w", m.Point, err)
		}
		defer unix.Close(fd) //nolint:errcheck // nothing was written
		dir, path = fd, minor+"/abort"
	}
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("abort the mount on %s: %w", m.Point, os.NewSyscallError("open", err))
	}
	defer unix.Close(fd) //nolint:errcheck // the write's error counts
	if _, err := unix.Write(fd, []byte("1")); err != nil {
		return fmt.Errorf("abort the mount on %s: %w", m.Point, os.NewSyscallError("write", err))
	}
	return nil
}

// detachedMount mounts a file system where nobody sees it.
func detachedMount(fsType string) (int, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	return fd, os.NewSyscallError("fsmount", err)
}

// Detach takes the mount away, in use or not, if it is still the topmost on its point.
func (m Mount) Detach() error {
	now, found, err := Find(m.Point)
	if err != nil || !found || now.ID != m.ID {
		return err
	}
	return detach(m.Point)
}
