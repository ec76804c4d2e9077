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
	if len(changes) == 0 {
		return nil, nil
	}
	args := []any{name}
	var parts []backends.Claim
	for _, c := range changes {
		args = append(args, c.ID, len(c.To))
		for _, keep := range c.To {
			if err := check(backends.Request{Lock: keep.Lock}); err != nil {
				return nil, s.called("changing locks on", name, err)
			}
			id := s.newID()
			args = append(args, id, encodeLock(keep.Lock, keep.Hint))
			parts = append(parts, backends.Claim{ID: id, Lock: keep.Lock, Hint: keep.Hint})
		}
	}
	a, err := s.call(ctx, s.ctx, func(a answer) { s.changed(name, changes, parts, a) }, changeScript, args...)
	if err != nil {
		return nil, s.called("changing locks on", name, err)
	}
	return kept(parts, a), nil
}

// changed notes what the server has carried out. mu is held.
func (s *session) changed(name string, changes []backends.Change, parts []backends.Claim, a answer) {
	for _, c := range changes {
		delete(s.claims, c.ID)
	}
	for _, c := range kept(parts, a) {
		s.hold(name, c)
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
