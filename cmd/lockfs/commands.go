package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"lockfs/backends/all"
	"lockfs/config"
	"lockfs/fs/mountpoint"
)

func newUmount() *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use:                   "umount [-l] MOUNTPOINT",
		Aliases:               []string{"unmount"},
		Short:                 "unmount; what the node holds is released",
		Args:                  arguments(1, 1),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeDirectory,
		RunE:                  func(_ *cobra.Command, args []string) error { return mountpoint.Unmount(args[0], lazy) },
	}
	c.Flags().BoolVarP(&lazy, "lazy", "l", false, "free the mount point at once, end when the last file is closed")
	return c
}

func newCheck() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:                   "check [-c FILE]",
		Short:                 "check the configuration, try its back ends, say which one would be used",
		Args:                  arguments(0, 0),
		DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return check(c.Context(), file, c.OutOrStdout())
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE`")
	return c
}

// check reports on out; the error is what keeps a mount from working.
func check(ctx context.Context, file string, out io.Writer) error {
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	from := c.File
	if from == "" {
		from = "the default, for there is no file"
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
	say("configuration: %s: good", from)
	if len(c.Ignored) > 0 {
		say("keys that mean nothing to lockfs: %s", strings.Join(c.Ignored, ", "))
	}
	used := -1
	for i, b := range c.Backends {
		local, err := try(ctx, c, b)
		switch {
		case err != nil:
			say("back end %d: %s", i+1, reason(b, err))
		case used >= 0:
			say("back end %d: %v: answers, would not be used", i+1, b)
		default:
			used = i
			say("back end %d: %v: answers, would be used", i+1, b)
			if local && i > 0 {
				say("warning: its locks end at this machine, unlike those of the servers before it")
			}
		}
	}
	if config.Blocked() {
		return fmt.Errorf("locking is turned off: $%s is set; unset it to mount", config.EnvBlock)
	}
	if used < 0 {
		return errors.New("no back end can be used; start one, or correct the configuration")
	}
	return nil
}

// try opens one back end of the configuration, as a mount would.
func try(ctx context.Context, c *config.Config, b config.Backend) (local bool, err error) {
	one := *c
	one.Backends = []config.Backend{b}
	backend, err := all.Open(ctx, &one, slog.New(slog.DiscardHandler))
	if err != nil {
		return false, err
	}
	return backend.Local(), backend.Close()
}

// reason is the error in one line that names the back end once.
func reason(b config.Backend, err error) string {
	line := oneLine(err)
	if name := b.String(); !strings.Contains(line, name) {
		line = name + ": " + line
	}
	return line
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// version is set by the Makefile.
var version = ""

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "say which version this is",
		Args:  arguments(0, 0),
		Run: func(c *cobra.Command, _ []string) {
			name := version
			if info, ok := debug.ReadBuildInfo(); ok && name == "" {
				name = info.Main.Version
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "lockfs %s %s %s/%s\n", name, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

func completeDirectory(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}
