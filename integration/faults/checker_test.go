package faults

import (
	"strings"
	"testing"
)

func w(owner string, token uint64, invoked, from, to int64) grant {
	return grant{Owner: owner, Name: "x", Write: true, Token: token, Invoked: invoked, From: from, To: to, Gone: to + 1, End: released}
}

func r(owner string, token uint64, invoked, from, to int64) grant {
	g := w(owner, token, invoked, from, to)
	g.Write = false
	return g
}

// gone makes a grant one that was lost.
func (g grant) gone() grant {
	g.Gone, g.End = never, lost
	return g
}

func cells(first, last int, g grant) grant {
	g.First, g.Last = first, last
	return g
}

func on(name string, g grant) grant {
	g.Name = name
	return g
}

// What has to be found, each as lockfs would show it with a bug, and each beside its nearest relative that is right.
func TestChecks(t *testing.T) {
	for name, c := range map[string]struct {
		history []grant
		overlap bool
		token   bool
		order   bool
		repeat  bool // by others that don't exclude it
	}{
		"one after the other":                       {history: []grant{w("a", 1, 0, 1, 5), w("b", 2, 2, 7, 9)}},
		"two writers":                               {history: []grant{w("a", 1, 0, 1, 5), w("b", 2, 2, 5, 9)}, overlap: true, order: true},
		"a writer within a long one":                {history: []grant{w("a", 1, 0, 1, 99), w("b", 2, 2, 50, 51)}, overlap: true, order: true},
		"a reader in a writer":                      {history: []grant{w("a", 1, 0, 1, 5), r("b", 2, 2, 4, 9)}, overlap: true, order: true},
		"a writer in a reader":                      {history: []grant{r("a", 1, 0, 1, 5), w("b", 2, 2, 4, 9)}, overlap: true, order: true},
		"a writer in the longer of two readers":     {history: []grant{r("a", 1, 0, 1, 20), r("b", 2, 0, 2, 5), w("c", 3, 2, 9, 12)}, overlap: true, order: true},
		"readers together":                          {history: []grant{r("a", 1, 0, 1, 9), r("b", 2, 0, 2, 5), w("c", 3, 2, 11, 12)}},
		"two names":                                 {history: []grant{w("a", 1, 0, 1, 5), on("y", w("b", 1, 2, 3, 9))}},
		"lost, and given on after it":               {history: []grant{w("a", 1, 0, 1, 5).gone(), w("b", 2, 2, 6, 9), w("c", 3, 2, 12, 13)}},
		"lease margin skipped: held on after it":    {history: []grant{w("a", 1, 0, 1, 50).gone(), w("b", 2, 2, 6, 9)}, overlap: true, order: true},
		"readers lost, one held on":                 {history: []grant{r("a", 1, 0, 1, 5).gone(), r("b", 2, 0, 1, 9).gone(), w("c", 3, 2, 8, 10)}, overlap: true, order: true},
		"a token repeated":                          {history: []grant{w("a", 7, 0, 1, 5), w("b", 7, 2, 7, 9)}, token: true, order: true},
		"a token repeated later, by a reader":       {history: []grant{w("a", 7, 0, 1, 2), w("b", 8, 2, 4, 5), r("c", 7, 2, 7, 9)}, token: true, order: true},
		"a token smaller than a reader's":           {history: []grant{r("a", 7, 0, 1, 2), w("b", 6, 2, 4, 5)}, token: true, order: true},
		"a token repeated within a node":            {history: []grant{w("n/a", 7, 0, 1, 5), w("n/b", 7, 2, 7, 9)}, token: true, order: true},
		"a token repeated for other bytes":          {history: []grant{w("a", 7, 0, 1, 5), cells(1, 2, w("b", 7, 2, 3, 9))}, repeat: true},
		"bytes that don't overlap":                  {history: []grant{w("a", 7, 0, 1, 5), cells(1, 2, w("b", 8, 2, 3, 9))}},
		"bytes that overlap":                        {history: []grant{cells(0, 1, w("a", 7, 0, 1, 5)), cells(0, 2, w("b", 8, 2, 3, 9))}, overlap: true, order: true},
		"bytes that overlap, readers":               {history: []grant{cells(0, 1, r("a", 7, 0, 1, 5)), cells(0, 2, r("b", 8, 2, 3, 9))}},
		"readers of a node share a token":           {history: []grant{w("a", 6, 0, 1, 2), r("n/a", 7, 0, 4, 9), r("n/b", 7, 2, 5, 9), w("c", 8, 2, 11, 12)}},
		"a smaller token within a node":             {history: []grant{w("n/a", 7, 0, 1, 5), w("n/b", 6, 2, 7, 9)}, token: true, order: true},
		"a writer's token shown to a reader":        {history: []grant{w("n/a", 7, 0, 1, 5), r("m/c", 7, 3, 10, 11)}, token: true, order: true},
		"readers' tokens in no order":               {history: []grant{r("a", 7, 0, 1, 2), r("b", 6, 0, 4, 5), w("c", 8, 2, 7, 8)}},
		"a token that is not known":                 {history: []grant{w("a", 7, 0, 1, 2), w("b", 0, 2, 4, 5), w("c", 8, 2, 7, 8)}},
		"another's claim released, let in too soon": {history: []grant{w("a", 1, 0, 1, 9), w("b", 2, 2, 4, 5), w("c", 3, 2, 7, 8)}, overlap: true, order: true},
	} {
		t.Run(name, func(t *testing.T) {
			if found := len(overlaps(byCell(c.history)["x cell 0"])) > 0; found != c.overlap {
				t.Errorf("overlap found: %v, want %v", found, c.overlap)
			}
			if found := len(tokens(byCell(c.history)["x cell 0"])) > 0; found != c.token {
				t.Errorf("token found: %v, want %v", found, c.token)
			}
			if found := linearizable("x cell 0", byCell(c.history)["x cell 0"]) != ""; found != c.order {
				t.Errorf("no order found: %v, want %v", found, c.order)
			}
			if found := len(check(c.history)) > 0; found != (c.overlap || c.token || c.order || c.repeat) {
				t.Errorf("check found %q", check(c.history))
			}
		})
	}
}

// From what a worker wrote down to the time that it held for sure.
func TestHistory(t *testing.T) {
	begin := []event{{At: 10, Kind: evInvoke, Attempt: 3, Name: "x", Write: true}, {At: 20, Kind: evOK, Attempt: 3}, {At: 22, Kind: evToken, Attempt: 3, Token: 9}}
	release := event{At: 40, Kind: evRelease, Attempt: 3}
	for name, c := range map[string]struct {
		record record
		after  []event
		want   string // the grant's end
		none   bool
	}{
		"released":                          {after: []event{release, {At: 50, Kind: evReleased, How: unlocking}}, want: "from 20 to 40"},
		"released, by a close":              {after: []event{release, {At: 50, Kind: evReleased, How: closing}}, want: "from 20 to 40"},
		"found lost":                        {after: []event{{At: 60, Kind: evLost, Mark: 33}}, want: "from 20 to 33"},
		"found lost at once":                {after: []event{{At: 60, Kind: evLost}}, none: true},
		"found lost at the release":         {after: []event{release, {At: 60, Kind: evLost, Mark: 35}}, want: "from 20 to 35"},
		"killed":                            {record: record{death: killed, marked: 3, mark: 31}, want: "from 20 to 31"},
		"killed before it knew of the lock": {record: record{death: killed, marked: 2, mark: 5}, none: true},
		"killed while it released":          {record: record{death: killed, marked: 3, mark: 39}, after: []event{release}, want: "from 20 to 39"},
		"stopped by lockfs":                 {record: record{kills: true, death: stopped, marked: 3, mark: 70}, want: "from 20 to 70"},
		"stopped by lockfs at once":         {record: record{kills: true, death: stopped}, want: "from 20 to 20"},
	} {
		t.Run(name, func(t *testing.T) {
			c.record.events = append(append([]event{}, begin...), c.after...)
			all, _ := c.record.grants()
			if c.none != (len(all) == 0) || len(all) > 1 {
				t.Fatalf("grants: %v", all)
			}
			if len(all) == 1 && (!strings.Contains(all[0].String(), c.want) || all[0].Token != 9 || all[0].Invoked != 10) {
				t.Errorf("got %v, want %s", all[0], c.want)
			}
		})
	}
}
