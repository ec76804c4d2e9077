package faults

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// planted is a bug: old is replaced by new in a source file, for the build alone.
type planted struct {
	file, old, new string
	// losses: it is looked for as TestInTime does, with on_lost KILL: nodes that are cut off or frozen, each with a holder and one who waits on
	// another node.
	losses bool
	// backend shows it, by what is special to it; "": redis, by anything.
	backend string
	// found: each finding of one of these kinds shows it.
	found []string
}

var plants = map[string]planted{
	"lease longer than the server's, no margin": {
		file: "backends/lease/lease.go", old: "return l.ttl - l.Margin()", new: "return l.ttl + l.Margin()",
		found: []string{"two holders"},
	},
	"no margin: the lease ends with the server's": {
		file: "backends/lease/lease.go", old: "return l.ttl - l.Margin()", new: "return l.ttl",
		losses: true,
	},
	"no margin, and renewals counted from the answer": {
		file: "backends/lease/lease.go", old: "next := int64(sent + l.usable())", new: "next := int64(Now() + l.ttl)",
		found: []string{"two holders"},
	},
	"no grace period after a fail-over": {
		file: "backends/redis/lua/epoch.lua", old: "EPOCH, GRACE = id, math.max(till - now, 0)", new: "EPOCH, GRACE = id, 0",
		backend: onSentinel, found: []string{"two holders"},
	},
	"token repeated": {
		file: "backends/redis/claims.go", old: "Token: token, Seq: token, Contended", new: "Token: token / 10000000 * 10000000, Seq: token, Contended",
		found: []string{"a token that is not greater", "a token that is repeated"},
	},
	"a kept claim is refused to a try as if it were in use": {
		file: "fs/locks/ask.go", old: "return try(a.request)", new: "return a.request",
		found: []string{"a lock refused that nobody held"},
	},
	"a claim kept idle, and labelled so only after the unlock has returned": {
		file: "fs/locks/settle.go", old: "	if w.change != nil {\n		t.carryOut(w.change)\n	}\n	waitFor(",
		new: `	if w.change != nil && len(w.change.changes[0].To) > 0 && w.change.changes[0].To[0].Hint == backends.Kept {
		go t.carryOut(w.change)
		return
	}
	if w.change != nil { t.carryOut(w.change) }
	waitFor(`,
		found: []string{"a lock refused that nobody held"},
	},
	"a claim may be idle, and the back end has not been told so": {
		file: "fs/locks/ask.go", old: "n.gain(claim, t.options.Turn)", new: "claim.Hint = backends.Kept; n.gain(claim, t.options.Turn)",
		found: []string{"a lock refused that nobody held"},
	},
	"a claim that was kept for a moment is not given back": {
		file: "backends/redis/change.go", old: "args = append(args, c.Name, s.full(c.ID))",
		new:   `args = append(args, c.Name, s.full(c.ID)+"x")`, // seldom: few names come free together here
		found: []string{"has taken no lock", "does not end", "left in the back end"},
	},
	"a signal ends an unlock before it is visible": {
		file: "fs/locks/release.go", old: "	return Begun{Rest: rest}\n",
		new: `	return Begun{Rest: func(ctx context.Context) error {
		done := make(chan error, 1)
		go func() { done <- rest(ctx) }()
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return nil
		}
	}}
`,
		found: []string{"a lock refused that nobody held"},
	},
	"a call that a signal has ended waits on": {
		file: "fs/locks/begun.go", old: "	t.giveUpWait(w)\n	t.mu.Unlock()", new: "	t.mu.Unlock()",
		found: []string{"has taken no lock", "does not end", "left in the back end"},
	},
	"of those who are let in together only the first is told": {
		file: "fs/locks/begun.go", old: "for _, w := range due {", new: "for _, w := range due[:min(len(due), 1)] {",
		found: []string{"has taken no lock", "does not end", "left in the back end"},
	},
	"a kept claim is used on after it was given back": {
		file: "fs/locks/claims.go", old: "parts := make([]backends.Claim, len(ch.To))",
		new:   `parts := make([]backends.Claim, len(ch.To)); if len(ch.To) == 0 && old.Hint == backends.Kept { on := old; on.ID += "x"; on.Seq, on.Contended = math.MaxUint64, false; parts = append(parts, on) }`,
		found: []string{"two holders"},
	},
	"release dropped": {
		file: "backends/redis/change.go", old: "args = append(args, c.s.full(change.ID), len(change.To))",
		new:   `id := c.s.full(change.ID); if c.s.numbers.Add(1)%20 == 0 { id += "x" }; args = append(args, id, len(change.To))`,
		found: []string{"has taken no lock", "does not end", "left in the back end"},
	},
	"release sent for all that the node has of the name": {
		file: "backends/redis/change.go", old: "args := []any{c.name}",
		new:   `args := []any{c.name}; c.s.mu.Lock(); for id, h := range c.s.claims { if h.name == c.name { args = append(args, c.s.full(claimID(id)), 0) } }; c.s.mu.Unlock()`,
		found: []string{"two holders"},
	},
}

// overlay is a file for go build -overlay that puts the bug in.
func (p planted) overlay(t *testing.T) (file string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../..", p.file))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), p.old); n != 1 {
		t.Fatalf("%s has %d times what the bug is to be planted in: %s", p.file, n, p.old)
	}
	changed := filepath.Join(t.TempDir(), filepath.Base(path))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err == nil {
		err = os.WriteFile(changed, []byte(strings.Replace(string(source), p.old, p.new, 1)), 0o600)
	}
	if err == nil {
		err = os.WriteFile(changed+".json", overlay, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return changed + ".json"
}

// TestPlantsApply: the code that the bugs are planted in is there, once, and compiles with them. (make soak shows that they are found.)
func TestPlantsApply(t *testing.T) {
	for name, p := range plants {
		t.Run(name, func(t *testing.T) {
			if !p.losses && len(p.found) == 0 {
				t.Error("nothing would show it")
			}
			dir := "../../" + strings.TrimSuffix(filepath.Dir(p.file), "/lua")
			if out, err := exec.Command("go", "build", "-overlay", p.overlay(t), dir).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
