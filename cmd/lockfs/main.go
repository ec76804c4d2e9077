// Command lockfs mounts cluster-wide locks as files.
//
// It parses, wires together and reports; what it reports is one line a fault
// on standard error, "lockfs: …", exit code 1, or 2 where the command line is wrong.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lockfs/cmd/internal/daemon"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run carries out a command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	child, _ := daemon.Inherited()
	root := newRoot(child, stderr)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(args[1:])
	if isMountHelper(args, root) {
		root = newMountHelper(child, stderr)
		root.SetArgs(args[1:])
	}
	err := root.Execute()
	if err == nil {
		return 0
	}
	code := exitCode(err)
	if child != nil {
		child.Fail(err)
		return code
	}
	report(stderr, err)
	return code
}

// report prints an error, a line for each fault that it tells.
func report(w io.Writer, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line != "" { // the text of a library may end in a newline
			_, _ = fmt.Fprintln(w, "lockfs: "+line) // nowhere left to say so
		}
	}
}

func exitCode(err error) int {
	var usage usageError
	var failed *daemon.FailedError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &failed):
		return failed.ExitCode
	}
	return exitFailure
}

func newRoot(child *daemon.Child, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "lockfs",
		Short:         "cluster-wide locks as files",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; lockfs --help lists them", args[0])}
			}
			return usageError{errors.New("no command; lockfs --help lists them")}
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see: %s --help", err, c.CommandPath())}
	})
	root.AddCommand(newMount(child, stderr), newUmount(), newCheck(), newVersion(), newServe(child, stderr))
	return root
}

// arguments is cobra.RangeArgs with an error of usage.
func arguments(low, high int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return usageError{fmt.Errorf("%d arguments are not what it takes; usage: %s", len(args), c.UseLine())}
		}
		return nil
	}
}

// isMountHelper reports whether mount(8) called: under the name mount.lockfs
// or mount.fuse.lockfs, or through mount.fuse3, which runs
// `lockfs SOURCE MOUNTPOINT -o OPTIONS`.
func isMountHelper(args []string, root *cobra.Command) bool {
	if strings.HasPrefix(filepath.Base(args[0]), "mount.") {
		return true
	}
	if len(args) != 5 || args[3] != "-o" {
		return false
	}
	isCommand := func(c *cobra.Command) bool { return c.Name() == args[1] }
	return !strings.HasPrefix(args[1], "-") && !strings.HasPrefix(args[1], "__") && // cobra's completion
		!slices.ContainsFunc(root.Commands(), isCommand)
}
