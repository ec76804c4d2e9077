package redis

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"lockfs/backends"
)

// Change shrinks, relabels and drops claims, as backends.Session says.
func (s *session) Change(ctx context.Context, name string, changes []backends.Change) ([]backends.Claim, error) {
	return s.BeginChange(name, changes).Result(ctx)
}

// changing is a Change on its way: a call, or why there is none.
type changing struct {
	s     *session
	name  string
	parts []backends.Claim
	call  *calling
	err   error
}

// BeginChange is as backends.Prompt says.
func (s *session) BeginChange(name string, changes []backends.Change) backends.Pending[[]backends.Claim] {
	c := &changing{s: s, name: name}
	args, err := c.arguments(changes)
	if err != nil || len(changes) == 0 {
		c.err = err
		return c
	}
	c.call = s.begin(s.ctx, func(a answer) { s.changed(name, changes, c.parts, a) }, changeScript, args...)
	return c
}

func (c *changing) Ready() <-chan struct{} { return nil }

func (c *changing) Decided() bool { return c.call == nil || c.call.decided() }

func (c *changing) Result(ctx context.Context) ([]backends.Claim, error) {
	if c.call == nil && c.err == nil {
		return nil, nil
	}
	var a answer
	err := c.err
	if err == nil {
		a, err = c.call.wait(ctx)
	}
	if err != nil {
		return nil, c.s.called("changing locks on", c.name, err)
	}
	return kept(c.parts, a), nil
}

// arguments are what the change script takes; it sets parts.
func (c *changing) arguments(changes []backends.Change) ([]any, error) {
	args := []any{c.name}
	for _, change := range changes {
		args = append(args, c.s.full(change.ID), len(change.To))
		for _, keep := range change.To {
			if err := check(backends.Request{Lock: keep.Lock}); err != nil {
				return nil, err
			}
			id := claimID(c.s.numbers.Add(1))
			args = append(args, c.s.full(id), encodeLock(keep.Lock, keep.Hint))
			c.parts = append(c.parts, backends.Claim{ID: id, Lock: keep.Lock, Hint: keep.Hint})
		}
	}
	return args, nil
}

// changed notes what the server has carried out. mu is held.
func (s *session) changed(name string, changes []backends.Change, parts []backends.Claim, a answer) {
	for _, c := range changes {
		delete(s.claims, numberOf(c.ID))
	}
	for _, c := range kept(parts, a) {
		s.hold(numberOf(c.ID), name, &c)
	}
}

// kept are the parts that the change script has made claims of.
func kept(parts []backends.Claim, a answer) []backends.Claim {
	var claims []backends.Claim
	for i, part := range parts {
		token, err := strconv.ParseUint(a.text(2*i), 10, 64)
		if err != nil {
			continue // its claim is gone
		}
		part.Token, part.Seq, part.Contended = token, token, a.text(2*i+1) == "1"
		claims = append(claims, part)
	}
	return claims
}

// maxReleased bounds the claims that one script drops, for the server does nothing else meanwhile.
const maxReleased = 100

// Drop is as backends.Bulk says.
func (s *session) Drop(ctx context.Context, claims []backends.Named) error {
	for some := range slices.Chunk(claims, maxReleased) {
		args := make([]any, 0, 2*len(some))
		for _, c := range some {
			args = append(args, c.Name, s.full(c.ID))
		}
		apply := func(answer) {
			for _, c := range some {
				delete(s.claims, numberOf(c.ID))
			}
		}
		if _, err := s.call(ctx, s.ctx, apply, releaseScript, args...); err != nil {
			return s.called("giving back locks, among them", some[0].Name, err)
		}
	}
	return nil
}

// Holders returns the claims in conflict with a lock, as backends.Session says.
func (s *session) Holders(ctx context.Context, name string, lock backends.Lock) ([]backends.Holder, error) {
	const what = "asking for the holders of"
	if err := check(backends.Request{Lock: lock}); err != nil {
		return nil, s.called(what, name, err)
	}
	bounded, cancel := context.WithTimeout(s.ctx, s.b.timeout)
	defer cancel()
	a, err := s.call(ctx, bounded, nil, holdersScript, name, encodeLock(lock, 0))
	if err != nil {
		return nil, s.called(what, name, err)
	}
	var holders []backends.Holder
	for i := 0; i+3 < len(a.fields); i += 4 {
		h, err := decodeHolder(a.text(i), a.text(i+1), a.text(i+2), a.text(i+3))
		if err != nil {
			return nil, s.called(what, name, err)
		}
		holders = append(holders, h)
	}
	slices.SortFunc(holders, func(a, b backends.Holder) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Seq, b.Seq))
	})
	return holders, nil
}
