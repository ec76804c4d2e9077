package queue

// WaitingFor says for each entry whether it waits for what the owner behind
// the waiting entry i keeps meanwhile, directly or behind another: those are
// the entries that i goes ahead of.
func (s State) WaitingFor(i int) []bool {
	o := order{state: s}
	return o.waitingFor(i)
}

// Yields reports whether the waiting entry at index i is to give up because
// of the kind of a claim in its way. Settle takes such entries out itself.
func (s State) Yields(i int) bool { return s.yields(i) }
