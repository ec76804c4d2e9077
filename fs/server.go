package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lockfs/backends"
	"lockfs/config"
	"lockfs/fs/device"
	"lockfs/fs/ledger"
)

// Options say what to mount and where.
type Options struct {
	// Mountpoint is where Device is mounted.
	Mountpoint string
	// Backend stays the caller's: it closes it after Wait or Close.
	Backend backends.Backend
	Config  *config.Config
	// Log may be nil.
	Log *slog.Logger
	// Device is an open /dev/fuse that is mounted on Mountpoint already (mountpoint.Attach), with default_permissions and MaxRead. It is
	// the Server's, and closed when the mount has gone; also where Mount fails.
	Device *os.File
	// Ledger is shared with a keeper that looks after the holders when this process can't; nil: there is none.
	Ledger *ledger.Ledger
	// Guard is as in backends.SessionOptions.
	Guard func(*os.File) error
}

// Server is a live mount.
type Server struct {
	fs    *FileSystem
	conn  *device.Conn
	point string
	log   *slog.Logger
	done  chan struct{} // closed when requests no longer come and the table is closed
	err   error         // of closing the table; set before done is closed
}

// maxWrite is the greatest WRITE and READ: more than a file can hold, so that
// one that is too large is refused as a whole. Not much more, for each thread that reads requests has room for one.
const maxWrite = backends.MaxContent + 4096

// MaxRead is the mount option max_read that goes with it, for whoever mounts a Device.
const MaxRead = maxWrite

// goodbye bounds the release of what is held after the mount has gone.
const goodbye = 10 * time.Second

// protocol are the options under which go-fuse is to decode requests.
func protocol(log *slog.Logger) *fuse.MountOptions {
	return &fuse.MountOptions{
		EnableLocks: true,
		// O_TRUNC comes with OPEN, so that it can be put off until the lock is had.
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC,
		MaxWrite:          maxWrite,
		// RELEASE counts as background work, and must not queue up behind slow ones.
		MaxBackground: 256,
		Logger:        slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		PanicHandler:  panicked(log),
	}
}

// Mount serves a device that is mounted, and returns once the mount is live. ctx bounds that only.
// On an error no session is open.
func Mount(ctx context.Context, o Options) (*Server, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("serve the mount on %s: %w", o.Mountpoint, err), o.Device.Close())
	}
	fs, err := New(ctx, o)
	if err != nil {
		return nil, errors.Join(err, o.Device.Close())
	}
	conn, err := device.New(o.Device, fs, fs, protocol(fs.log), fs.log)
	if err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("serve the mount on %s: %w", o.Mountpoint, err), fs.Close(closing))
	}
	fs.conn.Store(conn)
	s := &Server{fs: fs, conn: conn, point: o.Mountpoint, log: fs.log, done: make(chan struct{})}
	go s.serve()
	if o.Ledger == nil {
		fs.guard.mounted(o.Mountpoint)
	}
	return s, nil
}

// serve ends when the mount has gone, whoever unmounted it.
func (s *Server) serve() {
	defer close(s.done)
	<-s.conn.Gone()
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	s.err = errors.Join(s.fs.Close(ctx), s.conn.Close())
}

// Wait returns when the mount has gone, whoever unmounted it, and all that
// was held has been released; its error says that the latter could not be
// told to the back end in time, whose lease then ends it.
func (s *Server) Wait() error {
	<-s.done
	return s.err
}

// Close releases all locks and unmounts. Where files are still open it
// detaches the mount (umount -l) and says so in the log: calls on them fail from then on, and
// the kernel lets go of the mount when this process ends. ctx bounds it.
func (s *Server) Close(ctx context.Context) error {
	select {
	case <-s.done:
		return s.err
	default:
	}
	err := unmount(ctx, s.point, false)
	if err == nil {
		return s.wait(ctx)
	}
	s.log.Warn("mount is busy: releasing all locks and detaching it", "mountpoint", s.point, "error", err)
	released := s.fs.Close(ctx)
	if err := unmount(ctx, s.point, true); err != nil {
		return errors.Join(released, fmt.Errorf("detach %s: %w", s.point, err))
	}
	return released
}

func (s *Server) wait(ctx context.Context) error {
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the mount %s: %w", s.point, context.Cause(ctx))
	}
}

// unmount unmounts as whom mounted; lazily: though files are open.
func unmount(ctx context.Context, point string, lazily bool) error {
	if os.Geteuid() == 0 {
		flags := 0
		if lazily {
			flags = unix.MNT_DETACH
		}
		return os.NewSyscallError("umount", unix.Unmount(point, flags))
	}
	args := []string{"-u", point}
	if lazily {
		args = []string{"-u", "-z", point}
	}
	out, err := exec.CommandContext(ctx, "fusermount3", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3 %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
