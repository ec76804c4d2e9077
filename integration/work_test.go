package integration

import (
	"fmt"
	"os"
)

// workEnv makes the test binary a program that does the work named, on
// its arguments: Go programs that the tests run beside others.
const workEnv = "LOCKFS_INTEGRATION_WORK"

// works are the programs.
var works = map[string]func(args []string) error{}

func workMain(work string) int {
	f, ok := works[work]
	if !ok {
		fmt.Fprintf(os.Stderr, "no work %q\n", work)
		return 2
	}
	if err := f(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
