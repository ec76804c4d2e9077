package mountpoint

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// FSType is the type under which lockfs mounts show in /proc/self/mountinfo
// and in mount(8): "fuse", a dot, and the subtype that fs gives go-fuse.
const FSType = "fuse.lockfs"

// Mount is a mount of this mount name space.
type Mount struct {
	// ID is what /proc/PID/fdinfo calls it.
	ID uint64
	// Point is where it is mounted, symbolic links resolved.
	Point string
	// Type is the file system's, Source what it says it mounts.
	Type, Source string
	// Dev is the device number, the name of the connection in /sys/fs/fuse/connections.
	Dev string
}

// IsLockfs reports whether it is a lockfs mount.
func (m Mount) IsLockfs() bool { return m.Type == FSType }

// isFUSE reports whether a FUSE server stands behind it.
func (m Mount) isFUSE() bool {
	return m.Type == "fuse" || m.Type == "fuseblk" || strings.HasPrefix(m.Type, "fuse.")
}

// Find returns the topmost mount whose mount point is path. It never touches
// what is mounted there, so it can't hang on a server that does not answer.
func Find(path string) (m Mount, found bool, err error) {
	path, err = resolve(path)
	if err != nil {
		return m, false, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return m, false, fmt.Errorf("list of mounts: %w", err)
	}
	defer f.Close()
	mounts, err := parse(f)
	for _, one := range mounts {
		if one.Point == path { // the last one lies on top
			m, found = one, true
		}
	}
	return m, found, err
}

// resolve makes path absolute and resolves symbolic links, without looking
// into what may be mounted at its end: readlink(2) asks the mount's root
// directory itself nothing.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", path, err)
	}
	const maxLinks = 40 // as the kernel
	for range maxLinks {
		if path == "/" {
			return path, nil
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", fmt.Errorf("mount point %s: %w", path, err)
		}
		path = filepath.Join(dir, filepath.Base(path))
		target, err := os.Readlink(path)
		if err != nil {
			return path, nil // no link
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", fmt.Errorf("mount point %s: too many symbolic links", path)
}

// parse reads lines of proc_pid_mountinfo(5):
// "36 35 98:0 /root /point rw,noatime master:1 - type source rw".
func parse(r io.Reader) ([]Mount, error) {
	var mounts []Mount
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 1 {
			continue // a line of a shape that proc does not document
		}
		id, err := strconv.ParseUint(left[0], 10, 64)
		if err != nil {
			continue
		}
		m := Mount{ID: id, Point: unescape(left[4]), Type: unescape(right[0]), Dev: left[2]}
		if len(right) > 1 {
			m.Source = unescape(right[1])
		}
		mounts = append(mounts, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list of mounts: %w", err)
	}
	return mounts, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline, backslash and #.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
