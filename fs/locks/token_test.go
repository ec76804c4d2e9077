package locks

import (
	"testing"

	"lockfs/backends"
)

// The token that is shown: of the claim behind the lock, whatever those who wait on this node have been granted.
func TestTokenNeverGetsSmaller(t *testing.T) {
	claim := func(mode backends.Mode, r backends.Range, token uint64) backends.Claim {
		return backends.Claim{Lock: backends.Lock{Range: r, Mode: mode}, Token: token}
	}
	lock := func(mode backends.Mode, r backends.Range) []held {
		return []held{{Lock: backends.Lock{Range: r, Mode: mode}}}
	}
	whole, low, high := backends.Whole, backends.Range{First: 0, Last: 9}, backends.Range{First: 10, Last: 19}
	for _, c := range []struct {
		what   string
		claims []backends.Claim
		held   []held
		shown  uint64
		want   uint64
	}{
		{"another's claim, who waits here", []backends.Claim{claim(backends.Write, whole, 5), claim(backends.Write, whole, 9)}, lock(backends.Write, whole), 0, 5},
		{"a writer after a reader here, whose claim is still there", []backends.Claim{claim(backends.Read, whole, 5), claim(backends.Write, whole, 9)}, lock(backends.Write, whole), 5, 9},
		{"a reader after that writer", []backends.Claim{claim(backends.Read, whole, 5), claim(backends.Write, whole, 9)}, lock(backends.Read, whole), 9, 9},
		{"another range", []backends.Claim{claim(backends.Write, low, 5), claim(backends.Write, high, 9)}, lock(backends.Write, high), 0, 9},
		{"a lock on two claims", []backends.Claim{claim(backends.Write, low, 5), claim(backends.Write, high, 9)}, lock(backends.Write, backends.Range{First: 5, Last: 15}), 0, 9},
		{"two locks", []backends.Claim{claim(backends.Write, low, 5), claim(backends.Write, high, 9)}, append(lock(backends.Write, low), lock(backends.Write, high)...), 0, 9},
	} {
		if got := (&claims{list: c.claims, shown: c.shown}).token(c.held); got != c.want {
			t.Errorf("%s: token %d, want %d", c.what, got, c.want)
		}
	}
}
