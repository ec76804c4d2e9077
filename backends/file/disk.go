package file

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// readSmall and writeSmall are os.ReadFile and os.WriteFile with only the
// system calls that a small regular file needs: they are most of what a lock costs here.

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func openRaw(path string, flags int) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func readSmall(path string) ([]byte, error) {
	fd, err := openRaw(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }() // it was only read
	buf, n := make([]byte, 1024), 0
	for {
		var got int
		err := retry(func() (err error) {
			got, err = unix.Read(fd, buf[n:])
			return err
		})
		n += got
		switch {
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n < len(buf): // a short read of a regular file is its end
			return buf[:n], nil
		}
		buf = append(buf, make([]byte, len(buf))...)
	}
}

func writeSmall(path string, data []byte) error {
	fd, err := openRaw(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return err
	}
	for len(data) > 0 && err == nil {
		var n int
		err = retry(func() (err error) {
			n, err = unix.Write(fd, data)
			return err
		})
		data = data[max(n, 0):]
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// writeSlot writes a state to a slot of its file, which is made if need be.
func writeSlot(path string, data []byte, slot int64) error {
	fd, err := openRaw(path, unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		return err
	}
	var n int
	err = retry(func() (err error) {
		n, err = unix.Pwrite(fd, data, slot*slotSize)
		return err
	})
	if err == nil && n < len(data) {
		err = unix.ENOSPC
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
