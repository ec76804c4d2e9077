// Command testreport reads what `go test -json` writes and reports as `go
// test` does: a line for each package, the whole output of what failed. It
// exits with 1 where a test failed or was skipped, where a package did not build, and where no
// test ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is a line of `go test -json`, see go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

func main() {
	if !report(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// report returns true where all is well.
func report(in io.Reader, out io.Writer) bool {
	r := reporter{out: out, output: map[string]*strings.Builder{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case line == "":
		case json.Unmarshal([]byte(line), &e) != nil:
			r.say("%s", line) // go itself has something to say
		default:
			r.take(e)
		}
		if err != nil {
			break
		}
	}
	r.say("%d tests passed, %d failed, %d skipped, %d packages failed\n", r.passed, r.failed, len(r.skipped), r.packages)
	for _, test := range r.skipped {
		r.say("SKIPPED %s: a test that can't run here is a failure\n", test)
	}
	return r.passed > 0 && r.failed+len(r.skipped)+r.packages == 0
}

type reporter struct {
	out                      io.Writer
	output                   map[string]*strings.Builder // by package and test
	passed, failed, packages int
	skipped                  []string
}

func (r *reporter) say(format string, args ...any) { _, _ = fmt.Fprintf(r.out, format, args...) }

func (r *reporter) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		r.say("%s", e.Output)
	case "build-fail":
		r.packages++
	case "output":
		if r.output[key] == nil {
			r.output[key] = &strings.Builder{}
		}
		r.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		r.end(e, key)
		delete(r.output, key)
	}
}

// end counts a test or a package that has ended.
func (r *reporter) end(e event, key string) {
	output := ""
	if b := r.output[key]; b != nil {
		output = b.String()
	}
	switch {
	case e.Action == "fail" && e.Test == "":
		r.packages++
		r.say("%s", output)
	case e.Action == "fail":
		r.failed++
		r.say("%s", output)
	case e.Test == "": // "skip" is a package without tests
		r.say("%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
	case e.Action == "skip":
		r.skipped = append(r.skipped, key)
		r.say("%s", output)
	default:
		r.passed++
	}
}
