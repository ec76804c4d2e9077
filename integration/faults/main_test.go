package faults

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(workerEnv); job != "" {
		os.Exit(workerMain(job))
	}
	if job := os.Getenv(holderEnv); job != "" {
		os.Exit(holderMain(job))
	}
	os.Exit(m.Run())
}

func errnoText(n int) string {
	if name := unix.ErrnoName(unix.Errno(n)); n > 0 && name != "" {
		return name
	}
	return "unknown"
}
