//go:build soak

package faults

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A planted bug: old is replaced by new in a source file, for the build alone.
type planted struct {
	file, old, new string
	kills          bool
	backend        string
	// found is what one of the findings has to say.
	found string
}

var plants = map[string]planted{
	"the lease's margin skipped, and counted from the reply": {
		file: "backends/lease/lease.go", old: "func (l *Lease) usable() time.Duration { return l.ttl - l.Margin() }",
		new: "func (l *Lease) usable() time.Duration { return l.ttl + l.Margin() }", backend: "redis", found: "two holders",
	},
	"a token repeated": {
		file: "backends/redis/claims.go", old: "", new: "", backend: "redis", found: "a token that is not greater",
	},
}

// plant builds lockfs with the bug in it.
func (p planted) plant(t *testing.T) string {
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
	return build(t, changed+".json")
}

// A lockfs with a bug planted is found out, within a few runs.
func TestPlanted(t *testing.T) {
	for name, p := range plants {
		t.Run(name, func(t *testing.T) {
			program := p.plant(t)
			for range 5 {
				res := perform(t, plan{backend: p.backend, kills: p.kills, alone: true, program: program, mixed: 10 * time.Second}, newSeed(t))
				for _, w := range res.wrong {
					if strings.Contains(w, p.found) {
						t.Logf("found: %s", w)
						return
					}
				}
			}
			t.Error("not found")
		})
	}
}
