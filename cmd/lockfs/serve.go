package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lockfs/backends"
	"lockfs/backends/all"
	"lockfs/cmd/internal/daemon"
	"lockfs/cmd/internal/keeper"
	"lockfs/cmd/internal/logging"
	"lockfs/config"
	"lockfs/fs"
)

// serveCommand is the server process's command, which the keeper calls.
const serveCommand = "__serve"

const (
	// goodbye bounds releasing and unmounting at the end. Less than the starter's
	// patience with a daemon that is told to stop (package daemon).
	goodbye = 12 * time.Second
	// serverGoodbye is the server's part of it.
	serverGoodbye = 11 * time.Second
	// again is how often a new server tries the back end that the one before had.
	again = 500 * time.Millisecond
)

// Causes of a context's end.
var (
	errStopped = errors.New("stopped by a signal")
	errGone    = errors.New("the keeper is gone or says so")
)

func newServe(child *daemon.Child, stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:    serveCommand,
		Hidden: true,
		Args:   arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			if child == nil {
				return usageError{errors.New("this command is for lockfs mount to call, not for people")}
			}
			return serve(child, stderr)
		},
	}
}

// serve is the server process: it serves what its keeper has mounted, until the mount is gone.
func serve(child *daemon.Child, stderr io.Writer) (err error) {
	var b brief
	received, err := keeper.Receive(&b)
	if err != nil {
		return err
	}
	widenScheduler()
	boundGarbage()
	_ = os.WriteFile("/proc/self/comm", []byte("lockfs"), 0) // for ps(1); it was started as /proc/self/exe
	if b.OOMScore != "" {
		_ = os.WriteFile(oomScoreFile, []byte(b.OOMScore), 0) // no harm if not: then it is spared too
	}
	c, err := b.Source.Config()
	if err != nil {
		return err
	}
	ctx, reopen, stop := serverSignals(received.Gone)
	defer stop()
	log, err := logging.Open(c.Log, b.Foreground, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	backend, err := openBackend(ctx, c, received, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	if len(c.Ignored) > 0 {
		log.Info("keys of the configuration that mean nothing to lockfs", "keys", c.Ignored)
	}
	server, err := fs.Mount(ctx, fs.Options{Mountpoint: b.Point, Backend: backend, Config: c, Log: log.Logger,
		Device: received.Device, Ledger: received.Page, Guard: received.Guard})
	if err != nil {
		return err
	}
	log.Info("mounted", "mountpoint", b.Point, "backend", backend.String(), "cluster", c.Cluster,
		"node", c.Node, "config", c.File, "pid", os.Getppid(), "server", os.Getpid())
	tell := child.Ready
	if b.Foreground {
		tell = child.Announce
	}
	if err := tell(); err != nil {
		return errors.Join(err, unmount(server))
	}
	log.Started()
	return stay(ctx, server, log, reopen)
}

// leastProcs is for the threads that read requests (package device has four at most that wait for the next one). With more, Go's scheduler wakes a thread
// for whatever becomes ready, and on a small machine that costs more than it brings; with fewer, crowds are slower (docs/performance.md).
const leastProcs = 4

// widenScheduler gives Go's scheduler more processors than the machine has, if it has few. A thread that waits in read(2) for the
// next request keeps its processor as long as others are idle; without an idle one it is taken away after 20 µs, and
// another thread started for it.
func widenScheduler() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(leastProcs, runtime.NumCPU()))
	}
}

// openBackend opens the first back end that answers, or, as the server of a mount that had one before, that one,
// however long it takes: a mount never moves to another.
func openBackend(ctx context.Context, c *config.Config, received *keeper.Received, log *logging.Log) (backends.Backend, error) {
	chosen, ok := received.Page.Backend()
	if !ok {
		backend, index, err := all.OpenFirst(ctx, c, log.Logger)
		if err != nil {
			return nil, fmt.Errorf("no back end can be used: %s; lockfs check tells more", oneLine(err))
		}
		received.Page.SetBackend(index)
		return backend, nil
	}
	one := *c
	one.Backends = c.Backends[chosen : chosen+1]
	for {
		backend, err := all.Open(ctx, &one, log.Logger)
		if err == nil || ctx.Err() != nil {
			return backend, err
		}
		log.Warn("the new server waits for its back end", "error", oneLine(err))
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
}

// stay returns when the mount is gone: unmounted by anyone, or here when it is to end.
func stay(ctx context.Context, server *fs.Server, log *logging.Log, reopen <-chan os.Signal) error {
	gone := make(chan error, 1)
	go func() { gone <- server.Wait() }()
	for {
		select {
		case err := <-gone:
			return err
		case <-reopen:
			if err := log.Reopen(); err != nil {
				log.Error("the log could not be opened again", "error", err)
			}
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, errGone) {
				log.Info("unmounting", "reason", cause)
			}
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
	ctx, cancel := context.WithTimeout(context.Background(), serverGoodbye)
	defer cancel()
	return server.Close(ctx)
}

// serverSignals returns a context that ends when the keeper is gone, or at a signal to the server itself, as an init system
// sends to all processes; a second signal changes nothing, for the end is bounded in time.
func serverSignals(gone <-chan struct{}) (ctx context.Context, reopen <-chan os.Signal, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ends, hangUps := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(hangUps, syscall.SIGHUP) // the keeper's, where there is a log to open again
	done := make(chan struct{})
	go func() {
		select {
		case s := <-ends:
			cancel(fmt.Errorf("%w: %s", errStopped, s))
		case <-gone:
			cancel(errGone)
		case <-done:
		}
	}()
	return ctx, hangUps, func() {
		close(done)
		cancel(nil)
	}
}
