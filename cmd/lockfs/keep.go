package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"lockfs/cmd/internal/daemon"
	"lockfs/cmd/internal/keeper"
	"lockfs/cmd/internal/logging"
	"lockfs/config"
	"lockfs/fs"
	"lockfs/fs/mountpoint"
)

// brief is what the keeper tells each server: all that the command line and the configuration said
// when it was mounted, whatever the file says now.
type brief struct {
	Source     config.Source
	Point      string
	AllowOther bool
	Foreground bool
	// OOMScore is what the server is to have again; the keeper has itself spared.
	OOMScore string
}

// oomScoreFile is who is killed first when memory runs out.
const oomScoreFile = "/proc/self/oom_score_adj"

// keep mounts and stays until the mount is gone. child is nil in the
// foreground. On an error nothing is left mounted.
func (r *mountRequest) keep(child *daemon.Child) (err error) {
	source, c, err := r.load()
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
	b := brief{Source: source, Point: place.Path, AllowOther: r.options.AllowOther || os.Geteuid() == 0, Foreground: child == nil}
	b.OOMScore = spareMe()
	k := r.keeper(b, c, log, reopen)
	k.Ready = func() error {
		place.Release()
		if child != nil {
			if err := child.Ready(); err != nil {
				return err
			}
		}
		log.Started()
		return nil
	}
	if err := k.Run(ctx); err != nil {
		return stopped(ctx, err)
	}
	log.Info("unmounted")
	return nil
}

// keeper fills in what the keeper needs.
func (r *mountRequest) keeper(b brief, c *config.Config, log *logging.Log, reopen <-chan os.Signal) *keeper.Keeper {
	return &keeper.Keeper{
		Attachment: mountpoint.Attachment{
			Point: b.Point, Source: "lockfs", Subtype: "lockfs", AllowOther: b.AllowOther,
			MaxRead: fs.MaxRead, Options: append([]string{"default_permissions"}, r.options.Kernel...),
		},
		Brief: b,
		Command: func() *exec.Cmd {
			return &exec.Cmd{
				Path: "/proc/self/exe", // this very program, though it has been replaced by another version
				Args: []string{"lockfs", serveCommand}, Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/",
				// Signals of the terminal are for the keeper alone.
				SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
			}
		},
		Grace:   config.GraceOnLost(c.SessionTTL),
		Goodbye: goodbye,
		HangUp:  reopen,
		Reopen: func() {
			if err := log.Reopen(); err != nil {
				log.Error("the log could not be opened again", "error", err)
			}
		},
		Log: log.Logger,
	}
}

// spareMe asks the kernel to take others first when memory runs out, and returns what held before. It
// is granted to root only.
func spareMe() (before string) {
	data, err := os.ReadFile(oomScoreFile)
	if err != nil || os.WriteFile(oomScoreFile, []byte("-900"), 0) != nil {
		return ""
	}
	return string(data)
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
