package locks

import (
	"testing"
	"testing/synctest"
	"time"

	"lockfs/backends"
)

// TestGrantShowsWhatWentBefore: who got a lock because another owner on this node has gone may say so on another
// node: there nobody is refused for the sake of the one that has gone.
func TestGrantShowsWhatWentBefore(t *testing.T) {
	for what, locks := range map[string]struct{ gone, mine, theirs backends.Lock }{
		"shared":      {whole(backends.Write), whole(backends.Read), whole(backends.Read)},
		"other bytes": {whole(backends.Write), bytesOf(0, 9, backends.Write), bytesOf(10, 19, backends.Write)},
		"less":        {bytesOf(0, 19, backends.Read), bytesOf(0, 9, backends.Write), bytesOf(10, 19, backends.Write)},
	} {
		for how, waits := range map[string]bool{"after RELEASE": false, "after a wait": true} {
			t.Run(what+" "+how, func(t *testing.T) {
				onNodes(t, 2, func(s *script) {
					s.now(0, fcntl(1, 1, locks.gone, false), nil)
					var mine *call
					if waits {
						mine = s.start(0, "mine", fcntl(2, 2, locks.mine, true))
					}
					s.m.gate = make(chan struct{})
					s.nodes[0].ReleaseHandle("x", 1)
					if !waits {
						mine = s.start(0, "mine", fcntl(2, 2, locks.mine, false))
					}
					time.Sleep(time.Second)
					synctest.Wait()
					early := mine.done
					theirs := s.start(1, "theirs", fcntl(3, 3, locks.theirs, false))
					if early && theirs.err != nil {
						t.Errorf("%v is locked, and nobody but its owner is there, but on the other node %v: %v", locks.mine, locks.theirs, theirs.err)
					}
					close(s.m.gate)
					s.ended(nil, mine)
					s.now(1, fcntl(3, 3, locks.theirs, false), nil)
					s.release(0, 2)
					s.release(1, 3)
				})
			})
		}
	}
}

// TestGrantWaitsForNothingElse: what is given back and excludes no more than the new lock does needs no waiting for.
func TestGrantWaitsForNothingElse(t *testing.T) {
	onNodes(t, 1, func(s *script) {
		s.now(0, flock(1, backends.Read, false), nil)
		s.m.gate = make(chan struct{})
		s.nodes[0].ReleaseHandle("x", 1)
		s.now(0, flock(2, backends.Read, false), nil)
		s.release(0, 2)
		s.now(0, flock(3, backends.Write, false), nil)
		close(s.m.gate)
		s.release(0, 3)
	})
}
