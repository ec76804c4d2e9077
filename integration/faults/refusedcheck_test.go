package faults

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attempt is the record of a worker's only attempt, with the harness's mark of its end.
func attempt(owner string, ended int64, events ...event) record {
	for i := range events {
		events[i].Attempt = 1
		if events[i].Kind == evInvoke || events[i].Kind == evOpens {
			events[i].Name = "x"
		}
	}
	return record{owner: owner, death: killed, ended: ended, events: events, marked: 1, mark: ended}
}

// Times are in ms.
func ms(n int64) int64 { return n * int64(time.Millisecond) }

// heldFrom is an attempt that got the write lock of the cells.
func heldFrom(first, last int, from, to int64) []event {
	return []event{{At: ms(from), Kind: evInvoke, Write: true, First: first, Last: last, How: waiting}, {At: ms(from + 1), Kind: evOK, How: waiting},
		{At: ms(to - 1), Kind: evRelease, How: unlocking}, {At: ms(to), Kind: evReleased, How: unlocking}}
}

// tryAt is one from its beginning to its return.
func tryAt(write bool, first, last int, from, to int64, errno unix.Errno) []event {
	e := event{At: ms(from), Kind: evInvoke, Write: write, First: first, Last: last, How: trying}
	if errno == 0 {
		return []event{e, {At: ms(to), Kind: evOK, How: trying}}
	}
	return []event{e, {At: ms(to), Kind: evFail, How: trying, Errno: int(errno)}}
}

// Each refusal that nothing justifies has to be found, and none beside it that something may have justified.
func TestRefusals(t *testing.T) {
	const stay = 4 * time.Second
	refused := func(from, to int64) record { return attempt("m/t", never, tryAt(true, 0, 2, from, to, unix.EAGAIN)...) }
	closed := heldFrom(0, 2, 10, 20)
	closed[3].How = closing
	slow := heldFrom(0, 2, 10, 2000)
	slow[2].At = ms(30)
	read := heldFrom(0, 2, 10, 20)
	read[0].Write = false
	opened := append([]event{{At: ms(5), Kind: evOpens, Write: true, Last: 2}}, heldFrom(0, 0, 10, 20)...)
	limit := []event{{At: ms(10), Kind: evInvoke, Write: true, Last: 2, How: limited}, {At: ms(20), Kind: evFail, How: limited, Errno: int(unix.ETIMEDOUT)}}
	for name, c := range map[string]struct {
		records []record
		outages []outage
		wrong   bool
	}{
		"nobody ever had it":                     {records: []record{refused(30, 40)}, wrong: true},
		"held":                                   {records: []record{attempt("n/a", never, heldFrom(0, 2, 10, 50)...), refused(30, 40)}},
		"held at the try's beginning":            {records: []record{attempt("n/a", never, heldFrom(0, 2, 10, 31)...), refused(30, 40)}},
		"asked for by the try's end":             {records: []record{attempt("n/a", never, heldFrom(0, 2, 39, 90)...), refused(30, 40)}},
		"unlocked before":                        {records: []record{attempt("n/a", never, heldFrom(0, 2, 10, 20)...), refused(30, 40)}, wrong: true},
		"the same, on the node itself":           {records: []record{attempt("m/a", never, heldFrom(0, 2, 10, 20)...), refused(30, 40)}, wrong: true},
		"taken after":                            {records: []record{attempt("n/a", never, heldFrom(0, 2, 41, 50)...), refused(30, 40)}, wrong: true},
		"other cells held":                       {records: []record{attempt("n/a", never, heldFrom(0, 1, 10, 90)...), attempt("m/t", never, tryAt(true, 2, 2, 30, 40, unix.EAGAIN)...)}, wrong: true},
		"one of its cells held":                  {records: []record{attempt("n/a", never, heldFrom(0, 1, 10, 90)...), attempt("m/t", never, tryAt(true, 1, 2, 30, 40, unix.EAGAIN)...)}},
		"whole file by the open, then unlocked":  {records: []record{attempt("n/a", never, opened...), attempt("m/t", never, tryAt(true, 2, 2, 6, 7, unix.EAGAIN)...)}},
		"after that":                             {records: []record{attempt("n/a", never, opened...), attempt("m/t", never, tryAt(true, 2, 2, 21, 22, unix.EAGAIN)...)}, wrong: true},
		"a read lock, refused for a reader":      {records: []record{attempt("n/a", never, tryAt(false, 0, 2, 10, 11, 0)...), attempt("m/t", never, tryAt(false, 0, 2, 30, 40, unix.EAGAIN)...)}, wrong: true},
		"a read lock, refused for a writer":      {records: []record{attempt("n/a", never, tryAt(false, 0, 2, 10, 11, 0)...), refused(30, 40)}},
		"both tries refused":                     {records: []record{attempt("n/t", never, tryAt(true, 0, 2, 30, 40, unix.EAGAIN)...), refused(30, 40)}},
		"a try refused before it":                {records: []record{attempt("n/a", never, heldFrom(0, 2, 1, 15)...), attempt("n/t", never, tryAt(true, 0, 2, 10, 20, unix.EAGAIN)...), refused(30, 40)}, wrong: true},
		"a try that got no answer before it":     {records: []record{attempt("n/t", never, tryAt(true, 0, 2, 10, 20, unix.ENOLCK)...), refused(30, 40)}},
		"no answer, which is no refusal":         {records: []record{attempt("m/t", never, tryAt(true, 0, 2, 30, 40, unix.ENOLCK)...)}},
		"closed a moment before":                 {records: []record{attempt("n/a", never, closed...), refused(30, 40)}},
		"closed long before":                     {records: []record{attempt("n/a", never, closed...), refused(4030, 4040)}, wrong: true},
		"closed, and another had it since":       {records: []record{attempt("n/a", never, closed...), attempt("n/b", never, heldFrom(0, 2, 21, 25)...), refused(30, 40)}, wrong: true},
		"closed, and another reader had it":      {records: []record{attempt("n/a", never, closed...), attempt("n/b", never, read...), refused(30, 40)}},
		"an unlock that did not wait till told":  {records: []record{attempt("n/a", never, slow...), refused(2030, 2040)}},
		"a time limit that was over":             {records: []record{attempt("n/a", never, limit...), refused(30, 40)}},
		"the same, and another had it since":     {records: []record{attempt("n/a", never, limit...), attempt("n/b", never, heldFrom(0, 2, 21, 25)...), refused(30, 40)}},
		"the holder killed":                      {records: []record{attempt("n/a", ms(25), heldFrom(0, 2, 10, 90)[:2]...), refused(4020, 4030)}},
		"the holder killed, long before":         {records: []record{attempt("n/a", ms(25), heldFrom(0, 2, 10, 90)[:2]...), refused(4026, 4030)}, wrong: true},
		"long before, and its node was cut off":  {records: []record{attempt("n/a", ms(25), heldFrom(0, 2, 10, 90)[:2]...), refused(4026, 4030)}, outages: []outage{{"n", ms(20), ms(40)}}},
		"long before, and another node was":      {records: []record{attempt("n/a", ms(25), heldFrom(0, 2, 10, 90)[:2]...), refused(4026, 4030)}, outages: []outage{{"m", ms(20), ms(40)}}, wrong: true},
		"long before, and the server went twice": {records: []record{attempt("n/a", ms(25), heldFrom(0, 2, 10, 90)[:2]...), refused(9000, 9010)}, outages: []outage{{"", ms(4500), ms(5500)}, {"", ms(1000), ms(2000)}}},
	} {
		t.Run(name, func(t *testing.T) {
			var present []presence
			var tries []try
			var all []grant
			for _, r := range c.records {
				p, tr := r.calls()
				g, _ := r.grants()
				present, tries, all = append(present, p...), append(tries, tr...), append(all, g...)
			}
			outlast(present, stay, c.outages)
			if sum := refusals(present, tries, all); (len(sum.wrong) > 0) != c.wrong {
				t.Errorf("found %q of %v beside %v", sum.wrong, tries, present)
			}
		})
	}
}

// An open that was to wait and got ENOLCK is found where its name had been there before, and only there.
func TestRefusedOpens(t *testing.T) {
	opens := func(at int64, errno unix.Errno) []event {
		e := event{At: ms(at), Kind: evInvoke, Write: true, How: opening + waiting}
		if errno == 0 {
			return []event{e, {At: ms(at + 5), Kind: evOK, Name: "x", How: opening + waiting}}
		}
		return []event{e, {At: ms(at + 5), Kind: evFail, Name: "x", How: opening + waiting, Errno: int(errno)}}
	}
	for what, c := range map[string]struct {
		first, second []event
		found         bool
	}{
		"nobody had opened it":             {opens(0, unix.ENOLCK), opens(10, 0), false},
		"somebody had":                     {opens(10, unix.ENOLCK), opens(0, 0), true},
		"somebody had, to lock after":      {opens(10, unix.ENOLCK), heldFrom(0, 2, 5, 20), true},
		"somebody did meanwhile":           {opens(0, unix.ENOLCK), opens(1, 0), false},
		"somebody had, and it was told so": {opens(10, unix.ENOTCONN), opens(0, 0), false},
	} {
		known, refused := attempt("n0/w0", ms(100), c.first...).opens()
		others, _ := attempt("n1/w1", ms(100), c.second...).opens()
		since(known, others)
		if wrong := refusedOpens(known, refused); (len(wrong) > 0) != c.found {
			t.Errorf("%s: found %v, want %v", what, wrong, c.found)
		}
	}
}
