package fs

import (
	"log/slog"
	"runtime/debug"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// panicked logs a bug with its stack; the request gets EIO, the mount lives on.
func panicked(log *slog.Logger) func(any) fuse.Status {
	return func(reason any) fuse.Status {
		log.Error("bug: a request panicked", "reason", reason, "stack", string(debug.Stack()))
		return fuse.EIO
	}
}
