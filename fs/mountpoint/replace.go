package mountpoint

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Replace is Attach where a dead mount lies on the point. As root, with Linux 6.5 and later, there is no moment in between in which
// the directory below can be seen: a program that locked there would exclude nobody. Where the dead mount
// has been taken away already, nothing is mounted: ErrNotMounted.
func Replace(a Attachment, dead Mount) (*os.File, error) {
	now, found, err := Find(a.Point)
	if err != nil {
		return nil, err
	}
	if !found || now.ID != dead.ID {
		return nil, fmt.Errorf("%s %w any more: somebody has taken the dead mount away", a.Point, ErrNotMounted)
	}
	if os.Geteuid() == 0 {
		if device, err := a.beneath(); err == nil {
			// The dead one is still on top, whatever the order in which the list names the two.
			return device, detach(a.Point)
		}
	}
	if err := dead.Detach(); err != nil {
		return nil, fmt.Errorf("take the dead mount off %s: %w", a.Point, err)
	}
	return Attach(a)
}

// beneath mounts below what lies on the point.
func (a Attachment) beneath() (*os.File, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open /dev/fuse", err)
	}
	if err := a.moveBeneath(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

func (a Attachment) moveBeneath(device int) error {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	attributes := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	settings := map[string]string{"source": a.Source, "subtype": a.Subtype, "fd": strconv.Itoa(device), "rootmode": strconv.FormatInt(unix.S_IFDIR, 8),
		"user_id": strconv.Itoa(os.Geteuid()), "group_id": strconv.Itoa(os.Getegid()), "max_read": strconv.Itoa(a.MaxRead)}
	for key, value := range settings {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("option %s: %w", key, os.NewSyscallError("fsconfig", err))
		}
	}
	flags := a.Options
	if a.AllowOther {
		flags = append([]string{"allow_other"}, flags...)
	}
	for _, flag := range flags {
		switch flag {
		case "exec":
		case "noexec":
			attributes |= unix.MOUNT_ATTR_NOEXEC
		default:
			if err := unix.FsconfigSetFlag(fs, flag); err != nil {
				return fmt.Errorf("option %s: %w", flag, os.NewSyscallError("fsconfig", err))
			}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount) //nolint:errcheck // nothing was written
	const moveMountBeneath = 0x200
	return os.NewSyscallError("move_mount", unix.MoveMount(mount, "", unix.AT_FDCWD, a.Point, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath))
}
