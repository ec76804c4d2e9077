package report

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine says in one line where and when something was measured, and how busy the machine was.
func Machine() string {
	var name unix.Utsname
	kernel := "?"
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Release[:])
	}
	return fmt.Sprintf("%s, %d cores; Linux %s; %s; load average before %s; %s", processor(), runtime.NumCPU(), kernel,
		runtime.Version(), load(), time.Now().UTC().Format("2006-01-02 15:04 UTC"))
}

func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo") // empty: not known
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func load() string {
	data, _ := os.ReadFile("/proc/loadavg") // empty: not known
	first, _, _ := strings.Cut(string(data), " ")
	return first
}

// Version is the first line that a program prints about itself.
func Version(program string, args ...string) string {
	out, err := exec.Command(program, args...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil || line == "" {
		return program + " of unknown version"
	}
	return line
}
