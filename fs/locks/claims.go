package locks

import (
	"math"
	"slices"
	"time"

	"lockfs/backends"
)

// claims is what the node has on one name in the back end, as far as it has
// been told. Invariant: the back end has at least this for the node, and this
// is at least what the node's owners have (core.needs).
type claims struct {
	list []backends.Claim
	// wanted: claims with a smaller Seq are wanted by another node.
	wanted uint64
	// last is the last token given to a lock on this node.
	last uint64
	// turn is when the node's turn ends: until then newcomers here are served from claims that
	// another node waits for (see clock). 0 as long as no node does.
	turn time.Duration
}

// contended reports whether another node waits for what the claim has:
// newcomers on this node are to queue behind it then.
func (c *claims) contended(claim *backends.Claim) bool {
	return claim.Contended || claim.Seq < c.wanted
}

// admit reports whether a newcomer can be served from what the node has, behind as many as are inside.
func (c *claims) admit(want backends.Lock, inside int) bool {
	if c.room() <= inside {
		return false
	}
	var parts []backends.Lock
	for i := range c.list {
		claim := &c.list[i]
		if !claim.Overlaps(want.Range) || c.contended(claim) && clock() >= c.turn {
			continue
		}
		if claim.Mode >= want.Mode && claim.Contains(want.Range) {
			return true // most often
		}
		parts = append(parts, claim.Lock)
	}
	return covers(parts, want)
}

// gain enters a claim that was granted.
func (c *claims) gain(claim backends.Claim, turn time.Duration) {
	if len(c.list) == 0 {
		c.turn = 0
	}
	c.list = append(c.list, claim)
	c.startTurn(turn)
}

// startTurn begins the node's turn when another node is first seen to wait. It ends for good when all claims
// have been given up, so that nobody is kept waiting for long by newcomers.
func (c *claims) startTurn(turn time.Duration) {
	if c.turn == 0 && slices.ContainsFunc(c.list, func(k backends.Claim) bool { return c.contended(&k) }) {
		c.turn = clock() + turn
	}
}

// letInBefore lets those in who came before a newcomer that is about to be admitted, and for whom the back end was asked:
// the claims that are there now will do for them as well. Else a newcomer would have to queue up behind
// them, and a node that has several requests in the back end's queue could use no turn but for one lock each.
// Their requests go on, for their places are theirs when the turn ends before they have been served (endTurn).
// It reports whether there are any; then the name is to be settled.
func (n *name) letInBefore(r *Request) (any bool) {
	var stay []*waiter
	for _, w := range slices.Clone(n.outside) {
		behind := slices.ContainsFunc(stay, func(o *waiter) bool { return o.collides(&w.Request) })
		if behind || !w.Wait || w.ask == nil || w.wentAhead || !w.collides(r) || !n.admit(w.Lock, len(n.queue)) {
			stay = append(stay, w)
			continue
		}
		n.letIn(w)
		w.inTurn, any = true, true
	}
	return any
}

// wantedOn reports whether another node waits for what the node has on a lock's bytes: who is admitted all the same is so for the turn only.
func (c *claims) wantedOn(l backends.Lock) bool {
	return slices.ContainsFunc(c.list, func(k backends.Claim) bool { return k.Overlaps(l.Range) && c.contended(&k) })
}

// have reports whether the node has a lock, wanted by others or not.
func (c *claims) have(want backends.Lock) bool {
	all := make([]backends.Lock, len(c.list))
	for i := range c.list {
		all[i] = c.list[i].Lock
	}
	return covers(all, want)
}

// tokenBits is how many bits of a token count the locks that owners on this node have had under one claim, after
// one another or together; the others are the claim's own token. So each lock has a token of its own
// though the back end was not asked for it.
const (
	tokenBits  = 12
	tokenBlock = 1 << tokenBits
)

// next returns the token of a new lock that the node's claims cover.
//
// Invariant: it is greater than all before on this node, and than those of other nodes' locks that this one excludes, which
// ended before the claim was granted; and smaller than those that come after it, for they come with a claim
// whose token is greater than those of all claims here (admit keeps a block from running over).
func (c *claims) next(l backends.Lock) uint64 {
	next := max(c.last+1, c.base(l)<<tokenBits)
	if next == c.last+1 && next%tokenBlock == 0 { // the block is used up
		next = c.nextBlock()
	}
	c.last = next
	return next
}

// nextBlock is the first token of the first claim after the block of the last token given. Where there is none
// (admit sees to it that there is), that block runs over.
func (c *claims) nextBlock() uint64 {
	first := uint64(math.MaxUint64)
	for i := range c.list {
		if token := c.list[i].Token; token > c.last>>tokenBits {
			first = min(first, token<<tokenBits)
		}
	}
	if first == math.MaxUint64 {
		return c.last + 1
	}
	return first
}

// base is the token of the claims that a lock stands on: of those that are enough for it the first granted, for
// the later ones may be those of owners who wait here, and may yet go away.
func (c *claims) base(l backends.Lock) uint64 {
	enough, part := uint64(math.MaxUint64), uint64(0)
	for i := range c.list {
		switch claim := &c.list[i]; {
		case claim.Mode >= l.Mode && claim.Contains(l.Range):
			enough = min(enough, claim.Token)
		case claim.Overlaps(l.Range):
			part = max(part, claim.Token)
		}
	}
	if enough == math.MaxUint64 {
		return part // several together are
	}
	return enough
}

// room is how many more locks can have tokens before a new claim has to be asked for.
func (c *claims) room() int {
	for i := range c.list {
		if c.list[i].Token > c.last>>tokenBits {
			return tokenBlock
		}
	}
	return tokenBlock - 1 - int(c.last%tokenBlock)
}

// sparing is which of the claims that nobody else waits for trim leaves as they are.
type sparing uint8

const (
	// spareNone: what is in use is labelled so.
	spareNone sparing = iota
	// spareInUse: of those that the node keeps (backends.Kept) the ones of which a part is needed.
	spareInUse
	// spareAll: all that it keeps; and where nothing is needed, it keeps what it has.
	spareAll
)

// trim returns the changes that bring the claims down to what is needed and
// label them with the right hint. A claim that is needed as it is stays
// untouched; of the others only what no claim that stays has is kept.
func (c *claims) trim(needs []backends.Lock, hintOn func(backends.Range) (backends.Hint, bool), spare sparing) []backends.Change {
	var changes []backends.Change
	var kept []backends.Lock
	var excess []backends.Claim
	for i, claim := range c.list {
		needed := slices.ContainsFunc(needs, func(l backends.Lock) bool { return l.Overlaps(claim.Range) })
		switch free := !c.contended(&c.list[i]); {
		case free && claim.Hint == backends.Kept && (spare == spareAll || spare == spareInUse && needed):
			kept = append(kept, claim.Lock)
			continue
		case free && spare == spareAll && len(needs) == 0:
			changes = append(changes, backends.Change{ID: claim.ID, To: []backends.Keep{{Lock: claim.Lock, Hint: backends.Kept}}})
			continue
		}
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

// sufficient reports, for the most frequent cases, that trim has nothing to do: there is one claim, and it is kept, or
// it is just what the only holder has.
func (n *name) sufficient(keep bool) bool {
	if len(n.list) != 1 {
		return false
	}
	switch claim := &n.list[0]; {
	case claim.Hint != backends.Kept:
		return len(n.held) == 1 && n.held[0].Lock == claim.Lock && n.held[0].hint == claim.Hint
	case n.contended(claim):
		return false
	case len(n.held) == 0:
		return keep
	default:
		return n.held[0].Overlaps(claim.Range)
	}
}

// extent is a lock that excludes all that the claims do that are to be changed.
func (c *claims) extent(changes []backends.Change) backends.Lock {
	var all backends.Lock
	for i := range c.list {
		claim := &c.list[i]
		switch {
		case !slices.ContainsFunc(changes, func(ch backends.Change) bool { return ch.ID == claim.ID }):
		case all.Mode == backends.None:
			all = claim.Lock
		default:
			all.First, all.Last, all.Mode = min(all.First, claim.First), max(all.Last, claim.Last), max(all.Mode, claim.Mode)
		}
	}
	return all
}

// idle reports whether the changes do no more than drop claims that are labelled Kept.
func (c *claims) idle(changes []backends.Change) bool {
	return !slices.ContainsFunc(changes, func(ch backends.Change) bool {
		return len(ch.To) > 0 || slices.ContainsFunc(c.list, func(k backends.Claim) bool { return k.ID == ch.ID && k.Hint != backends.Kept })
	})
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
