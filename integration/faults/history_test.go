package faults

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// never is the time of what has not happened.
const never = math.MaxInt64

// ending is how a worker's grant came to an end.
type ending string

const (
	released ending = "released"
	lost     ending = "lost"    // the holder got an error
	unsure   ending = "unsure"  // its release got an error: it may have been carried out
	stopped  ending = "stopped" // the holder was killed by lockfs
	killed   ending = "killed"  // the holder was killed by the harness
)

// grant is one owner's time in a critical section, in ns of CLOCK_BOOTTIME.
type grant struct {
	Owner string // node/worker#attempt
	Name  string
	Write bool
	// First and Last are its cells, both included.
	First, Last int
	Token       uint64 // 0: not known
	Invoked     int64  // the lock call began
	From, To    int64  // it held for sure, both included
	Gone        int64  // the latest time at which the release has taken effect; never: some time after To
	End         ending
}

func (g grant) String() string {
	mode := "read"
	if g.Write {
		mode = "write"
	}
	return fmt.Sprintf("%s lock of %s on %s, cells %d to %d, token %d, asked at %d, held from %d to %d (%v), %s",
		mode, g.Owner, g.Name, g.First, g.Last, g.Token, g.Invoked, g.From, g.To, time.Duration(g.To-g.From), g.End)
}

// record is all that is known of a worker that has ended.
type record struct {
	owner  string
	kills  bool // on_lost is KILL
	death  ending
	ended  int64 // when it was seen to have ended
	events []event
	marked int64 // the attempt of the last mark
	mark   int64
}

// readEvents reads a worker's log. There is none where it was killed before it could make one.
func readEvents(path string) ([]event, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []event
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return all, fmt.Errorf("%s: %q: %w", path, lines.Bytes(), err)
		}
		all = append(all, e)
	}
}

// grants turns a record into grants: of those that were granted something, the ones that held at some
// time for sure. failed counts the errors by what was asked and the errno.
func (r record) grants() (all []grant, failed map[string]int) {
	failed = map[string]int{}
	var g grant
	open := false
	release, opened := int64(0), int64(0)
	end := func(at, gone int64, how ending) {
		if open && at >= g.From {
			g.To, g.Gone, g.End = at, gone, how
			all = append(all, g)
		}
		open = false
	}
	for _, e := range r.events {
		switch e.Kind {
		case evInvoke:
			g = grant{Owner: fmt.Sprintf("%s#%d", r.owner, e.Attempt), Name: e.Name, Write: e.Write, First: e.First, Last: e.Last, Invoked: e.At}
		case evOpens:
			opened = e.Attempt
		case evFail:
			how := e.How
			if e.Attempt == opened {
				how = after + how
			}
			failed[how+" "+errnoText(e.Errno)]++
		case evOK:
			g.From, open = e.At, true
		case evToken:
			g.Token = e.Token
		case evRelease:
			release = e.At
		case evReleased:
			gone := e.At
			if e.How == closing {
				gone = never // the server is told a moment later
			}
			end(release, gone, released)
		case evLost:
			failed["lost "+errnoText(e.Errno)]++
			how := lost
			if release > g.From {
				how = unsure
			}
			end(r.sure(g, e.Mark), never, how)
		}
	}
	if open {
		mark := int64(0)
		if last := r.events[len(r.events)-1]; r.marked == last.Attempt {
			mark = r.mark
		}
		end(r.sure(g, mark), never, r.death)
	}
	return all, failed
}

// opens says since when it has known names to be there, and lists the opens that were to wait and got ENOLCK, with the time at which they began.
func (r record) opens() (known map[string]int64, refused []event) {
	known = map[string]int64{}
	var invoked event
	for _, e := range r.events {
		byOpen := strings.HasPrefix(e.How, opening)
		switch {
		case e.Kind == evInvoke && byOpen:
			invoked = e
		case e.Kind == evInvoke, e.Kind == evOK: // it has a descriptor
			since(known, map[string]int64{e.Name: e.At})
		case e.Kind == evFail && e.How == opening+waiting && e.Errno == int(unix.ENOLCK):
			refused = append(refused, invoked)
		}
	}
	return known, refused
}

// since adds to what is known of names, each by the first time.
func since(known, more map[string]int64) {
	for name, at := range more {
		if first, ok := known[name]; !ok || at < first {
			known[name] = at
		}
	}
}

// refusedOpens are those opens among refused that the contract has no excuse for: an open that waits goes on waiting when the
// back end goes, but for the one that creates the name.
func refusedOpens(known map[string]int64, refused []event) (wrong []string) {
	for _, e := range refused {
		if at, ok := known[e.Name]; ok && at < e.At {
			wrong = append(wrong, fmt.Sprintf("an open of %s that was to wait, begun at %d, got ENOLCK, though the name had been there for %v", e.Name, e.At, time.Duration(e.At-at)))
		}
	}
	return wrong
}

// sure is the last time at which a holder without a release held for sure, before g.From where there is none.
// One that lockfs promises to kill holds while it runs; it ran when its lock call returned.
func (r record) sure(g grant, mark int64) int64 {
	switch {
	case mark >= g.From:
		return mark
	case r.kills:
		return g.From
	}
	// The first call on the descriptor begins after From by the clock that is read once more.
	return 0
}
