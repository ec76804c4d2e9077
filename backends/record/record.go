// Package record is how engines without fields of their own keep an inode: a
// line of JSON with the attributes, then the contents as they are.
package record

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"lockfs/backends"
)

// Inode is an inode with its contents.
type Inode struct {
	backends.Info
	Content []byte
}

// header is the first line. Times are nanoseconds since 1970.
type header struct {
	Ino                 uint64
	Mode, UID, GID      uint32
	Nlink               uint32
	Atime, Mtime, Ctime int64
	Target              []byte `json:",omitempty"` // base64: a target may hold any byte
}

// Marshal encodes an inode.
func Marshal(in Inode) []byte {
	line, err := json.Marshal(header{in.Ino, in.Mode, in.UID, in.GID, in.Nlink,
		in.Atime.UnixNano(), in.Mtime.UnixNano(), in.Ctime.UnixNano(), []byte(in.Target)})
	if err != nil {
		panic(err) // numbers and bytes always encode
	}
	return append(append(line, '\n'), in.Content...)
}

// Unmarshal decodes what Marshal made. An error wraps backends.ErrForeign.
func Unmarshal(data []byte) (Inode, error) {
	line, content, ok := bytes.Cut(data, []byte{'\n'})
	var h header
	if err := json.Unmarshal(line, &h); err != nil || !ok {
		return Inode{}, fmt.Errorf("inode record of %d bytes: %w", len(data), backends.ErrForeign)
	}
	info := backends.Info{Ino: h.Ino, Mode: h.Mode, UID: h.UID, GID: h.GID, Nlink: h.Nlink,
		Size: int64(len(content)), Target: string(h.Target),
		Atime: time.Unix(0, h.Atime), Mtime: time.Unix(0, h.Mtime), Ctime: time.Unix(0, h.Ctime)}
	if info.Target != "" {
		info.Size = int64(len(info.Target))
	}
	return Inode{info, content}, nil
}

// Write puts data at off (backends.Append: at the end). The receiver's
// content is not changed in place.
func (in *Inode) Write(off int64, data []byte, mtime time.Time) error {
	if off == backends.Append {
		off = int64(len(in.Content))
	}
	if off > backends.MaxContent-int64(len(data)) {
		return backends.ErrTooLarge
	}
	content := make([]byte, max(off+int64(len(data)), int64(len(in.Content))))
	copy(content, in.Content)
	copy(content[off:], data)
	in.setContent(content)
	in.Mtime, in.Ctime = mtime, mtime
	return nil
}

// Read returns at most n bytes from off.
func (in *Inode) Read(off int64, n int) []byte {
	if off >= int64(len(in.Content)) {
		return nil
	}
	return in.Content[off:min(off+int64(n), int64(len(in.Content)))]
}

// Update changes the attributes that attr names.
func (in *Inode) Update(attr backends.Attr) error {
	if attr.Size != nil {
		if *attr.Size > backends.MaxContent {
			return backends.ErrTooLarge
		}
		content := make([]byte, *attr.Size)
		copy(content, in.Content)
		in.setContent(content)
	}
	if attr.Mode != nil {
		in.Mode = in.Mode&^07777 | *attr.Mode&07777
	}
	if attr.UID != nil {
		in.UID = *attr.UID
	}
	if attr.GID != nil {
		in.GID = *attr.GID
	}
	if attr.Atime != nil {
		in.Atime = *attr.Atime
	}
	if attr.Mtime != nil {
		in.Mtime = *attr.Mtime
	}
	if !attr.Ctime.IsZero() {
		in.Ctime = attr.Ctime
	}
	return nil
}

func (in *Inode) setContent(content []byte) {
	in.Content = content
	in.Size = int64(len(content))
}

// Root is the root directory before anybody changed it.
func Root() Inode {
	return Inode{Info: backends.Info{Ino: backends.RootIno, Mode: 0o041777, Nlink: 2,
		Atime: time.Unix(0, 0), Mtime: time.Unix(0, 0), Ctime: time.Unix(0, 0)}}
}

// NewIno returns a random inode number of 62 bits, never RootIno.
func NewIno() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(b[:])>>2 | 1<<32
}
