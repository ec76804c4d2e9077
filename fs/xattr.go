package fs

import (
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// tokenAttr is the extended attribute that gives the fencing token under which the caller, or else
// this node, holds the name now; there is none while it does not. The kernel does not say through which
// descriptor it is asked for.
const tokenAttr = "user.lockfs.token"

func (f *FileSystem) token(in *fuse.InHeader) (token string, held bool, err error) {
	_, name, err := f.nodes.find(in.NodeId)
	if err != nil {
		return "", false, err
	}
	t, held := f.table.Token(name, processOf(in.Pid)) // a thread may ask that did not lock
	return strconv.FormatUint(t, 10), held, nil
}

// GetXAttr implements fuse.RawFileSystem.
func (f *FileSystem) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if attr != tokenAttr {
		return 0, fuse.ENODATA
	}
	token, held, err := f.token(in)
	switch {
	case err != nil:
		return 0, f.status("getxattr", "", err)
	case !held:
		return 0, fuse.ENODATA
	}
	return fill(dest, token)
}

// ListXAttr implements fuse.RawFileSystem.
func (f *FileSystem) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	_, held, err := f.token(in)
	if err != nil || !held {
		return 0, f.status("listxattr", "", err)
	}
	return fill(dest, tokenAttr+"\x00")
}

// fill copies what fits; the size is right either way, as go-fuse wants it.
func fill(dest []byte, value string) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem: the token can't be set, others can't be stored.
func (f *FileSystem) SetXAttr(_ <-chan struct{}, _ *fuse.SetXAttrIn, attr string, _ []byte) fuse.Status {
	if attr == tokenAttr {
		return fuse.EPERM
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FileSystem) RemoveXAttr(_ <-chan struct{}, _ *fuse.InHeader, attr string) fuse.Status {
	if attr == tokenAttr {
		return fuse.EPERM
	}
	return fuse.ENODATA
}
