package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"lockfs/cmd/internal/daemon"
	"lockfs/config"
	"lockfs/fs/mountpoint"
)

// mountRequest is what the command line asks for.
type mountRequest struct {
	configFile string
	point      string // empty: the configuration's
	foreground bool
	fake       bool // check all, mount nothing
	options    mountpoint.Options
	stderr     io.Writer
}

func newMount(child *daemon.Child, stderr io.Writer) *cobra.Command {
	r := mountRequest{stderr: stderr}
	var options []string
	c := &cobra.Command{
		Use:   "mount [-c FILE] [-f] [-o OPT[,OPT…]] [MOUNTPOINT]",
		Short: "mount; returns once the mount is live",
		Long: `Mounts lockfs and returns once the mount is live, or says why not and leaves nothing behind.

Options of -o: config=FILE, cluster=NAME, node=NAME, lock_on_open=auto|always|never,
no_write_permission=lock|skip, on_lost=eio|TERM|KILL, session_ttl=15s, allow_other, noexec, and mount(8)'s own.

In /etc/fstab:
  none  /mnt/locks  fuse.lockfs  config=/etc/lockfs.yml,_netdev,nofail  0 0

SIGTERM and SIGINT release what the node holds and unmount. SIGHUP opens the log file again, where there is one.`,
		Args:                  arguments(0, 1),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeDirectory,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.point = args[0]
			}
			return r.run(child, options)
		},
	}
	c.Flags().StringVarP(&r.configFile, "config", "c", "", "configuration `FILE`")
	c.Flags().BoolVarP(&r.foreground, "foreground", "f", false, "stay in the foreground and log to standard error")
	c.Flags().StringArrayVarP(&options, "options", "o", nil, "mount `OPTIONS`, separated by commas")
	return c
}

// newMountHelper is the command as mount(8) calls it, see "External helpers" in mount(8).
func newMountHelper(child *daemon.Child, stderr io.Writer) *cobra.Command {
	r := mountRequest{stderr: stderr}
	var options []string
	var unused bool
	var unusedText string
	c := &cobra.Command{
		Use:                   "mount.lockfs SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPT[,OPT…]] [-t TYPE]",
		Short:                 "mount, as mount(8) calls it",
		Args:                  arguments(2, 2),
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(_ *cobra.Command, args []string) error {
			r.point = args[1] // the source is a name only
			return r.run(child, options)
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c.Flags().StringArrayVarP(&options, "options", "o", nil, "mount `OPTIONS`")
	c.Flags().BoolVarP(&r.fake, "fake", "f", false, "check all, mount nothing")
	c.Flags().BoolVarP(&unused, "sloppy", "s", false, "no meaning here")
	c.Flags().BoolVarP(&unused, "no-mtab", "n", false, "no meaning here")
	c.Flags().BoolVarP(&unused, "verbose", "v", false, "no meaning here")
	c.Flags().StringVarP(&unusedText, "namespace", "N", "", "no meaning here")
	c.Flags().StringVarP(&unusedText, "types", "t", "", "no meaning here")
	return c
}

func (r *mountRequest) run(child *daemon.Child, options []string) (err error) {
	if r.options, err = mountpoint.ParseOptions(options...); err != nil {
		return usageError{err}
	}
	switch {
	case r.configFile == "":
		r.configFile = r.options.Config
	case r.options.Config != "":
		return usageError{errors.New("the configuration is named twice, by -c and by -o config=; keep one of the two")}
	}
	if config.Blocked() {
		return fmt.Errorf("locking is turned off: $%s is set; unset it to mount", config.EnvBlock)
	}
	if child == nil && !r.foreground && !r.fake {
		return daemon.Start(daemon.Options{})
	}
	return r.keep(child)
}

// load reads the configuration and settles the mount point.
func (r *mountRequest) load() (config.Source, *config.Config, error) {
	var options []config.Option
	for _, key := range r.options.Keys {
		options = append(options, config.Option(key))
	}
	source, err := config.Read(r.configFile, options...)
	if err != nil {
		return source, nil, err
	}
	// The server runs in another directory; relative paths start where the file is.
	if source.File != "" {
		if source.File, err = filepath.Abs(source.File); err != nil {
			return source, nil, fmt.Errorf("configuration %s: %w", source.File, err)
		}
	}
	c, err := source.Config()
	if err != nil {
		return source, nil, err
	}
	if r.point == "" {
		r.point = c.Mountpoint
	}
	if r.point == "" {
		return source, nil, usageError{errors.New("no mount point; name one: lockfs mount MOUNTPOINT, or mountpoint: in the configuration")}
	}
	return source, c, nil
}
