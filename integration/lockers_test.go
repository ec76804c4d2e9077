package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// locker is a way in which programs lock. Its commands get the lock file's path for {}.
type locker struct {
	// hold waits for the lock, says "held", and lets go at the end of its standard input.
	hold []string
	// try tries for as long as limit says, and ends with 0 when it had the lock, with busy when not.
	try   []string
	busy  int
	limit time.Duration
	// plain: it opens as > does, so beside a holder that opened for reading its open waits, whatever its limit.
	plain bool
	env   []string
}

func (l locker) argv(argv []string, path string) []string {
	argv = slices.Clone(argv)
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], "{}", path)
	}
	return argv
}

func (l locker) start(t testing.TB, path string) *process {
	t.Helper()
	return startWith(t, l.env, l.argv(l.hold, path)...)
}

// fails tries beside a holder: it must give up, and not before its limit.
func (l locker) fails(t testing.TB, path string) {
	t.Helper()
	began := time.Now()
	startWith(t, l.env, l.argv(l.try, path)...).code(l.busy)
	if took := time.Since(began); took < l.limit {
		t.Errorf("%q gave up after %v, its limit is %v", l.try, took, l.limit)
	}
}

// succeeds tries until it has the lock: the kernel tells of a program's last close a moment after the program has ended.
func (l locker) succeeds(t testing.TB, path string) {
	t.Helper()
	eventually(t, "it gets the lock", func() bool {
		p := startWith(t, l.env, l.argv(l.try, path)...)
		if code := p.ended(); code != 0 && code != l.busy {
			t.Fatalf("%q ended with %d; it says: %s", p.cmd.Args, code, p.out.String())
		}
		return p.cmd.ProcessState.Success()
	})
}

func sh1(script string) []string { return []string{"/bin/sh", "-c", script, "sh", "{}"} }

const (
	half = 500 * time.Millisecond
	cat  = "echo held; cat"
)

// pathForm is flock(1) in path form, which all others meet.
var pathForm = locker{hold: []string{"flock", "{}", "sh", "-c", cat},
	try: []string{"flock", "-w", "0.5", "-E", "9", "{}", "true"}, busy: 9, limit: half}

// lockers are the programs by name.
var lockers = map[string]locker{
	"flock(1), path": pathForm,
	"flock(1), path, -n": {hold: pathForm.hold,
		try: []string{"flock", "-n", "{}", "true"}, busy: 1},
	"flock(1), fd": {hold: sh1("( flock 9 || exit 1; " + cat + " ) 9>$1"),
		try: sh1("( flock -n 9 || exit 8; true ) 9>$1"), busy: 8, plain: true},
	"flock(1), fd, -w": {hold: sh1("exec 9>$1; flock 9; " + cat + "; flock -u 9"),
		try: sh1("exec 9>$1; flock -w 0.5 -E 7 9"), busy: 7, limit: half, plain: true},
	"flock(1), fd, appending": {hold: sh1("( flock 9; " + cat + " ) 9>>$1"),
		try: sh1("( flock -w 0.5 9 || exit 8 ) 9>>$1"), busy: 8, limit: half},
	"flock(1), fd, reading": {hold: sh1("touch $1; ( flock 9; " + cat + " ) 9<$1"),
		try: sh1("( flock -w 0.5 9 || exit 8 ) 9<$1"), busy: 8, limit: half},
	"setlock": {hold: []string{"setlock", "{}", "sh", "-c", cat},
		try: []string{"setlock", "-n", "{}", "true"}, busy: 111},
	"perl": {hold: perl(`open(my $f, "+>>", $ARGV[0]) or die; flock($f, LOCK_EX) or die; held();`),
		try: perl(`open(my $f, "+>>", $ARGV[0]) or die; flock($f, LOCK_EX | LOCK_NB) or exit 9;`), busy: 9},
	"gofrs/flock": {hold: []string{os.Args[0], "hold", "{}"}, try: []string{os.Args[0], "try", "{}"},
		busy: 1, limit: half, env: []string{workEnv + "=gofrs"}},
}

func perl(body string) []string {
	return []string{"perl", "-e", `use Fcntl ":flock"; $| = 1; sub held { print "held\n"; 1 while <STDIN> } ` + body, "{}"}
}

// TestLockers has each program meet itself and flock(1) in path form, on two nodes.
func TestLockers(t *testing.T) {
	t.Parallel()
	all := map[string]locker{}
	for _, more := range []map[string]locker{lockers, pythonLockers, javaLockers(t)} {
		for name, l := range more {
			all[name] = l
		}
	}
	forEachBackend(t, func(t *testing.T, e *env) {
		for name, l := range all {
			t.Run(name, func(t *testing.T) {
				file := strings.Map(func(r rune) rune {
					if strings.ContainsRune(" (),/", r) {
						return '_'
					}
					return r
				}, name)
				meetItself(t, l, e.on(0, file), e.on(1, file))
				meetPathForm(t, l, e.on(0, file), e.on(1, file))
			})
		}
	})
}

func meetItself(t *testing.T, l locker, one, two string) {
	t.Helper()
	first := l.start(t, one).held()
	l.fails(t, two)
	l.fails(t, one)
	second := l.start(t, two)
	startsToWait(t, second)
	first.release()
	second.held()
	l.fails(t, one)
	second.release()
	l.succeeds(t, one)
}

func meetPathForm(t *testing.T, l locker, one, two string) {
	t.Helper()
	holder := pathForm.start(t, one).held()
	if !l.plain {
		l.fails(t, two)
	}
	waits := l.start(t, two)
	startsToWait(t, waits)
	holder.release()
	waits.held()
	pathForm.fails(t, one)
	back := pathForm.start(t, one)
	startsToWait(t, back)
	waits.release()
	back.held().release()
}

// startsToWait returns once flock(1) waits in the mount. Libraries ask again and again, so there is no one
// place where they wait; those that come later than the holder's release only meet a free lock.
func startsToWait(t *testing.T, p *process) {
	t.Helper()
	if p.cmd.Args[0] == "flock" {
		eventually(t, "it waits", func() bool { return waitsInFUSE(p.cmd.Process.Pid) })
	}
	if strings.Contains(p.out.String(), "held") {
		t.Fatalf("%q got in beside a holder", p.cmd.Args)
	}
}

// flock -s: readers together, no writer.
func TestFlockProgramShared(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		one := start(t, "flock", "-s", e.on(0, "x"), "sh", "-c", cat).held()
		two := start(t, "/bin/sh", "-c", "( flock -s -n 9 || exit 8; "+cat+" ) 9<$1", "sh", e.on(1, "x")).held()
		pathForm.fails(t, e.on(1, "x"))
		start(t, "flock", "-s", "-n", e.on(1, "x"), "true").code(0)
		one.release()
		pathForm.fails(t, e.on(0, "x"))
		two.release()
		pathForm.succeeds(t, e.on(0, "x"))
	})
}

// flock -u lets go while the descriptor stays open; flock on a directory locks as well.
func TestFlockProgramUnlock(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		holder := start(t, "/bin/sh", "-c", `exec 9>$1; flock 9; echo held; read go; flock -u 9; echo free; cat`, "sh", e.on(0, "x")).held()
		pathForm.fails(t, e.on(1, "x"))
		_, err := holder.in.Write([]byte("go\n"))
		must(t, err)
		eventually(t, "it let go", func() bool { return strings.Contains(holder.out.String(), "free") })
		pathForm.succeeds(t, e.on(1, "x"))
		holder.release()
	})
}

// The plain shell: > waits for the holder, and its words come whole.
func TestRedirection(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		holder := start(t, "/bin/sh", "-c", "{ echo one; echo held >&2; cat >&2; echo two; } >$1", "sh", e.on(0, "x")).held()
		next := start(t, "/bin/sh", "-c", "echo next >>$1", "sh", e.on(1, "x"))
		eventually(t, "it waits", func() bool { return waitsInFUSE(next.cmd.Process.Pid) })
		holder.release()
		next.code(0)
		if data, err := os.ReadFile(e.on(1, "x")); string(data) != "one\ntwo\nnext\n" {
			t.Errorf("the file holds %q (%v)", data, err)
		}
	})
}

// stress-ng's lock stressors, on two nodes at once. Not lockofd: it fills a file of a mebibyte before it locks, which is more than a
// file here may hold (TestByteRanges does what it does). Each has to lock at all, for a stressor that
// is still filling its file when its time is over ends with success.
func TestStressors(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		var all []*process
		for node := range 2 {
			for stressor, enough := range map[string]int{"flock": 1000, "lockf": 50} {
				dir := e.on(node, stressor)
				_ = os.Mkdir(dir, 0o777) // by the other node, perhaps
				all = append(all, start(t, "stress-ng", "--"+stressor, "2", "--"+stressor+"-ops", fmt.Sprint(enough),
					"--timeout", fmt.Sprint(int(patience/time.Second)/2), "--metrics-brief", "--temp-path", dir))
			}
		}
		for _, p := range all {
			p.code(0)
			stressor := p.cmd.Args[1][2:]
			if operations(t, p, stressor) == 0 {
				t.Errorf("%s has not come to lock; it says: %s", stressor, p.out.String())
			}
		}
	})
}

// operations is how many a stressor says that it has done.
func operations(t *testing.T, p *process, stressor string) int {
	t.Helper()
	line := regexp.MustCompile(`metrc: \[\d+\] ` + stressor + ` +(\d+) `).FindStringSubmatch(p.out.String())
	if line == nil {
		t.Fatalf("%s does not say what it has done: %s", stressor, p.out.String())
	}
	n, err := strconv.Atoi(line[1])
	must(t, err)
	return n
}
