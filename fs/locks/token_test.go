package locks

import (
	"testing"

	"lockfs/backends"
)

// The token of a new lock: in the block of the claims behind it, whatever those who wait on this node have been
// granted, and greater than the last.
func TestNextToken(t *testing.T) {
	claim := func(mode backends.Mode, r backends.Range, token uint64) backends.Claim {
		return backends.Claim{Lock: backends.Lock{Range: r, Mode: mode}, Token: token}
	}
	lock := func(mode backends.Mode, r backends.Range) backends.Lock { return backends.Lock{Range: r, Mode: mode} }
	const block = tokenBlock
	whole, low, high := backends.Whole, backends.Range{First: 0, Last: 9}, backends.Range{First: 10, Last: 19}
	for _, c := range []struct {
		what   string
		claims []backends.Claim
		lock   backends.Lock
		last   uint64
		want   uint64
	}{
		{"the first", []backends.Claim{claim(backends.Write, whole, 5)}, lock(backends.Write, whole), 0, 5 * block},
		{"the next under one claim", []backends.Claim{claim(backends.Write, whole, 5)}, lock(backends.Write, whole), 5 * block, 5*block + 1},
		{"another's claim, who waits here", []backends.Claim{claim(backends.Write, whole, 5), claim(backends.Write, whole, 9)}, lock(backends.Write, whole), 0, 5 * block},
		{"a writer after a reader here, whose claim is still there", []backends.Claim{claim(backends.Read, whole, 5), claim(backends.Write, whole, 9)}, lock(backends.Write, whole), 5*block + 3, 9 * block},
		{"a reader after that writer", []backends.Claim{claim(backends.Read, whole, 5), claim(backends.Write, whole, 9)}, lock(backends.Read, whole), 9 * block, 9*block + 1},
		{"the block is used up", []backends.Claim{claim(backends.Read, whole, 5), claim(backends.Read, whole, 9)}, lock(backends.Read, whole), 6*block - 1, 9 * block},
		{"another range", []backends.Claim{claim(backends.Write, low, 5), claim(backends.Write, high, 9)}, lock(backends.Write, high), 0, 9 * block},
		{"a lock on two claims", []backends.Claim{claim(backends.Write, low, 5), claim(backends.Write, high, 9)}, lock(backends.Write, backends.Range{First: 5, Last: 15}), 0, 9 * block},
	} {
		if got := (&claims{list: c.claims, last: c.last}).next(c.lock); got != c.want {
			t.Errorf("%s: token %d, want %d", c.what, got, c.want)
		}
	}
}

// A block of tokens never runs over: when it is used up, the node asks for a new claim.
func TestTokenBlockRunsOut(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		last := uint64(0)
		s.now(0, flock(1, backends.Read, false), nil) // keeps the first claim
		for range 3 * tokenBlock {
			s.now(0, flock(2, backends.Read, false), nil)
			token, ok := s.nodes[0].Token("x", 0)
			if !ok || token <= last {
				s.Fatalf("token %d after %d", token, last)
			}
			last = token
			s.release(0, 2)
		}
		if s.m.last < 3 || s.m.last > 20 {
			s.Errorf("%d claims for %d locks, want one for %d", s.m.last, 3*tokenBlock, tokenBlock)
		}
		s.release(0, 1)
	})
}

// TestTokenOfAnotherDescription: the owner of an OFD lock may be the next description at the same place, before the end of the one before is known. Its
// token is its own.
func TestTokenOfAnotherDescription(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		token := func(handle uint64) uint64 {
			s.now(0, fcntl(1, handle, bytesOf(0, 9, backends.Write), false), nil)
			token, _ := s.nodes[0].Token("x", 0)
			return token
		}
		first := token(1)
		if again := token(1); again != first {
			s.Errorf("asked for once more through the same description: token %d after %d", again, first)
		}
		second := token(2)
		if second <= first {
			s.Errorf("through another one: token %d after %d", second, first)
		}
		s.release(0, 1)
		if held, ok := s.nodes[0].Token("x", 0); !ok || held != second {
			s.Errorf("after the end of the first: token %d, %v", held, ok)
		}
		s.release(0, 2)
	})
}
