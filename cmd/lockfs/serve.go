package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"lockfs/backends"
	"lockfs/backends/all"
	"lockfs/cmd/internal/daemon"
	"lockfs/cmd/internal/logging"
	"lockfs/config"
	"lockfs/fs"
	"lockfs/fs/mountpoint"
)

// goodbye bounds releasing and unmounting at the end. Less than the starter's
// patience with a daemon that is told to stop (package daemon).
const goodbye = 12 * time.Second

// errStopped is the cause of a context that a signal ended.
var errStopped = errors.New("stopped by a signal")

// serve mounts and stays until the mount is gone. child is nil in the
// foreground. On an error nothing is left mounted.
func (r *mountRequest) serve(child *daemon.Child) (err error) {
	c, err := r.load()
	if err != nil {
		return err
	}
	// All signals are taken care of before anything is there to be cleaned up.
	ctx, reopen, stop := signals(child == nil, c.Log.File != "")
	defer stop()
	if err := mountpoint.CheckFUSE(); err != nil {
		return err
	}
	place, err := mountpoint.Prepare(r.point)
	if err != nil {
		return err
	}
	defer place.Release()
	if r.fake {
		return nil
	}
	log, err := logging.Open(c.Log, child == nil, r.stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if place.Cleared > 0 {
		log.Warn("took away a mount that a crashed server had left", "mountpoint", place.Path, "mounts", place.Cleared)
	}
	backend, err := all.Open(ctx, c, log.Logger)
	if err != nil {
		return stopped(ctx, fmt.Errorf("no back end can be used: %s; lockfs check tells more", oneLine(err)))
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	server, err := r.mount(ctx, c, place, backend, log)
	if err != nil {
		return stopped(ctx, err)
	}
	place.Release()
	if child != nil {
		if err := child.Ready(); err != nil {
			return errors.Join(err, unmount(server))
		}
	}
	log.Started()
	return stay(ctx, server, log, reopen)
}

// mount makes the mount live.
func (r *mountRequest) mount(ctx context.Context, c *config.Config, place *mountpoint.Place, backend backends.Backend, log *logging.Log) (*fs.Server, error) {
	if len(c.Ignored) > 0 {
		log.Info("keys of the configuration that mean nothing to lockfs", "keys", c.Ignored)
	}
	server, err := fs.Mount(ctx, fs.Options{
		Mountpoint:   place.Path,
		Backend:      backend,
		Config:       c,
		Log:          log.Logger,
		MountOptions: r.options.Kernel,
		AllowOther:   r.options.AllowOther || os.Geteuid() == 0,
	})
	if err != nil {
		return nil, err
	}
	log.Info("mounted", "mountpoint", place.Path, "backend", backend.String(), "cluster", c.Cluster,
		"node", c.Node, "config", c.File, "pid", os.Getpid())
	return server, nil
}

// stay returns when the mount is gone: unmounted by anyone, or here at a signal.
func stay(ctx context.Context, server *fs.Server, log *logging.Log, reopen <-chan os.Signal) error {
	gone := make(chan error, 1)
	go func() { gone <- server.Wait() }()
	for {
		select {
		case err := <-gone:
			log.Info("unmounted")
			return err
		case <-reopen:
			if err := log.Reopen(); err != nil {
				log.Error("the log could not be opened again", "error", err)
			}
		case <-ctx.Done():
			log.Info("unmounting", "reason", context.Cause(ctx))
			err := unmount(server)
			if err != nil {
				log.Error("unmounting did not end well; the lease ends what is left", "error", err)
			}
			return err
		}
	}
}

// unmount releases all and unmounts.
func unmount(server *fs.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	return server.Close(ctx)
}

// signals returns a context that the first SIGTERM or SIGINT ends; a second
// one kills the process, as it would any. SIGHUP, where there is a log file,
// asks to open it again, as those who rotate logs do. Where there is none it
// means in the foreground that the terminal is gone, and counts as SIGTERM unless
// nohup(1) has it ignored; in the background it means nothing.
func signals(foreground, logFile bool) (ctx context.Context, reopen <-chan os.Signal, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ends, hangUps := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	switch {
	case logFile:
		signal.Notify(hangUps, syscall.SIGHUP)
	case !foreground:
		signal.Ignore(syscall.SIGHUP)
	case !signal.Ignored(syscall.SIGHUP):
		signal.Notify(ends, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		select {
		case s := <-ends:
			signal.Stop(ends)
			cancel(fmt.Errorf("%w: %s", errStopped, s))
		case <-done:
		}
	}()
	return ctx, hangUps, func() {
		signal.Stop(ends)
		signal.Stop(hangUps)
		close(done)
		cancel(nil)
	}
}

// stopped names the signal as the reason of an error that came from it.
func stopped(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStopped) {
		return fmt.Errorf("not mounted: %w", cause)
	}
	return err
}
