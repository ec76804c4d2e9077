package integration

import (
	"path/filepath"
	"strings"
	"testing"
)

// dotlock is a program whose lock is a file that exists.
type dotlock struct {
	lock   []string // tries once
	unlock []string
	busy   int
	name   string // of the lock file, for {}
}

var dotlocks = map[string]dotlock{
	"dotlockfile": {lock: []string{"dotlockfile", "-r", "0", "{}"}, unlock: []string{"dotlockfile", "-u", "{}"}, busy: 4, name: "x.lock"},
	"lockfile":    {lock: []string{"lockfile", "-r", "0", "{}"}, unlock: []string{"rm", "-f", "{}"}, busy: 73, name: "x.lck"},
	"lockfile-create": {lock: []string{"lockfile-create", "--lock-name", "--retry", "0", "{}"},
		unlock: []string{"lockfile-remove", "--lock-name", "{}"}, busy: 4, name: "y.lock"},
	"set -C": {lock: []string{"/bin/sh", "-c", "set -C; : > {} || exit 9"}, unlock: []string{"rm", "{}"}, busy: 2, name: "z"},
}

// nfsLock takes away the lock file of a dead process of this host, so its holder has to live.
var nfsLock = locker{
	hold: []string{"perl", "-e", `use File::NFSLock; use Fcntl ":flock"; $| = 1;
my $l = File::NFSLock->new($ARGV[0], LOCK_EX) or die $File::NFSLock::errstr; print "held\n"; 1 while <STDIN>; $l->unlock;`, "{}"},
	try: []string{"perl", "-e", `use File::NFSLock; use Fcntl ":flock";
File::NFSLock->new($ARGV[0], LOCK_EX | LOCK_NB) or exit 9;`, "{}"}, busy: 9,
}

// mailbox is Python's module: it locks a mailbox by fcntl and by a dot lock, whose file it opens twice.
var mailbox = locker{
	hold: py(`import mailbox, time
box = mailbox.mbox(path)
while True:
    try: box.lock(); break
    except mailbox.ExternalClashError: time.sleep(0.02)
held()
box.unlock()`),
	try: py(`import mailbox
box = mailbox.mbox(path)
try: box.lock()
except mailbox.ExternalClashError: sys.exit(9)
box.unlock()`), busy: 9,
}

func fill(argv []string, path string) []string {
	filled := make([]string, len(argv))
	for i, arg := range argv {
		filled[i] = strings.ReplaceAll(arg, "{}", path)
	}
	return filled
}

func TestDotlocks(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) {
		for name, d := range dotlocks {
			t.Run(name, func(t *testing.T) {
				one, two := e.on(0, d.name), e.on(1, d.name)
				start(t, fill(d.lock, one)...).code(0)
				start(t, fill(d.lock, two)...).code(d.busy)
				start(t, fill(d.lock, one)...).code(d.busy)
				start(t, fill(d.unlock, two)...).code(0)
				race(t, d, one, two)
				start(t, fill(d.unlock, one)...).code(0)
				left, err := filepath.Glob(e.on(1, "*"))
				must(t, err)
				if len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	})
}

// race has programs on both nodes try at once: exactly one wins.
func race(t *testing.T, d dotlock, one, two string) {
	t.Helper()
	var all []*process
	for range 3 {
		all = append(all, start(t, fill(d.lock, one)...), start(t, fill(d.lock, two)...))
	}
	won := 0
	for _, p := range all {
		switch code := p.ended(); code {
		case 0:
			won++
		case d.busy:
		default:
			t.Errorf("%q ended with %d; it says: %s", p.cmd.Args, code, p.out.String())
		}
	}
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func TestNFSLock(t *testing.T) {
	t.Parallel()
	if start(t, "perl", "-MFile::NFSLock", "-e", "1").ended() != 0 {
		t.Fatal("this test needs File::NFSLock: install Debian's package libfile-nfslock-perl")
	}
	forEachBackend(t, func(t *testing.T, e *env) { meetItself(t, nfsLock, e.on(0, "x"), e.on(1, "x")) })
}

func TestPythonMailbox(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, e *env) { meetItself(t, mailbox, e.on(0, "x"), e.on(1, "x")) })
}
