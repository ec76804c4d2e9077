package locks

import (
	"math"
	"slices"

	"lockfs/backends"
)

// claims is what the node has on one name in the back end, as far as it has
// been told. Invariant: the back end has at least this for the node, and this
// is at least what the node's owners have (core.needs).
type claims struct {
	list []backends.Claim
	// wanted: claims with a smaller Seq are wanted by another node.
	wanted uint64
	// shown is the greatest token that anybody on this node was told of.
	shown uint64
}

// contended reports whether another node waits for what the claim has:
// newcomers on this node are to queue behind it then.
func (c *claims) contended(claim *backends.Claim) bool {
	return claim.Contended || claim.Seq < c.wanted
}

// admit reports whether a newcomer can be served from what the node has.
func (c *claims) admit(want backends.Lock) bool {
	var free []backends.Lock
	for i := range c.list {
		if !c.contended(&c.list[i]) {
			free = append(free, c.list[i].Lock)
		}
	}
	return covers(free, want)
}

// have reports whether the node has a lock, wanted by others or not.
func (c *claims) have(want backends.Lock) bool {
	all := make([]backends.Lock, len(c.list))
	for i := range c.list {
		all[i] = c.list[i].Lock
	}
	return covers(all, want)
}

// token returns the token under which the node has locks: of the claims that are enough for a lock, the first
// granted, for the later ones may be those of owners who wait here, and may yet go away.
//
// Invariant: what it returns never gets smaller, and is greater than what another node had before that these locks
// exclude. So owners that follow each other on this node may see the same token, never a smaller one.
func (c *claims) token(locks []held) uint64 {
	for i := range locks {
		enough, part := uint64(math.MaxUint64), uint64(0)
		for _, claim := range c.list {
			switch {
			case claim.Mode >= locks[i].Mode && claim.Contains(locks[i].Range):
				enough = min(enough, claim.Token)
			case claim.Overlaps(locks[i].Range):
				part = max(part, claim.Token)
			}
		}
		if enough == math.MaxUint64 {
			enough = part // several together are
		}
		c.shown = max(c.shown, enough)
	}
	return c.shown
}

// trim returns the changes that bring the claims down to what is needed and
// label them with the right hint. A claim that is needed as it is stays
// untouched; of the others only what no claim that stays has is kept.
func (c *claims) trim(needs []backends.Lock, hintOn func(backends.Range) (backends.Hint, bool)) []backends.Change {
	var changes []backends.Change
	var kept []backends.Lock
	var excess []backends.Claim
	for _, claim := range c.list {
		if !covers(needs, claim.Lock) {
			excess = append(excess, claim)
			continue
		}
		kept = append(kept, claim.Lock)
		if hint, ok := hintOn(claim.Range); ok && hint != claim.Hint {
			changes = append(changes, backends.Change{ID: claim.ID, To: []backends.Keep{{Lock: claim.Lock, Hint: hint}}})
		}
	}
	for _, claim := range excess {
		change := backends.Change{ID: claim.ID}
		for _, need := range needs {
			both, ok := need.Intersect(claim.Range)
			if !ok {
				continue
			}
			for _, part := range uncovered(kept, backends.Lock{Range: both, Mode: min(need.Mode, claim.Mode)}) {
				hint, ok := hintOn(part.Range)
				if !ok {
					hint = claim.Hint
				}
				change.To = append(change.To, backends.Keep{Lock: part, Hint: hint})
				kept = append(kept, part)
			}
		}
		changes = append(changes, change)
	}
	return changes
}

// begin takes out of the list what the changes give up, before the back end is
// told: from here on nobody is admitted by it. What they keep stays, under
// the old IDs.
func (c *claims) begin(changes []backends.Change) {
	for _, ch := range changes {
		i := slices.IndexFunc(c.list, func(k backends.Claim) bool { return k.ID == ch.ID })
		old := c.list[i]
		parts := make([]backends.Claim, len(ch.To))
		for k, keep := range ch.To {
			parts[k] = old
			parts[k].Lock, parts[k].Hint = keep.Lock, keep.Hint
		}
		c.list = slices.Replace(c.list, i, i+1, parts...)
	}
}

// finish puts in the claims that the back end answered in the place of those
// that begin left under the old IDs.
func (c *claims) finish(changes []backends.Change, now []backends.Claim) {
	c.list = slices.DeleteFunc(c.list, func(k backends.Claim) bool {
		return slices.ContainsFunc(changes, func(ch backends.Change) bool { return ch.ID == k.ID })
	})
	c.list = append(c.list, now...)
}
