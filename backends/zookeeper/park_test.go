package zookeeper

import (
	"context"
	"errors"
	"testing"
	"time"

	"lockfs/backends"
)

// parkedRequest is one that waits in testParked.
type parkedRequest struct {
	s         *session
	giveUp    context.CancelFunc
	takenBack chan struct{}
	done      chan error
	claim     backends.Claim // when done has said nil
}

// testParked: of many requests of a session for one lock each costs the server one create; they are granted in the order in which they came, also
// where another session's stands between them, and where some, the first among them, are taken back.
func testParked(t *testing.T, r *rig) {
	const name = "parked"
	b := r.open(t, r.newCluster(), r.Addr())
	holder, many, other := newSession(t, b, time.Minute), newSession(t, b, time.Minute), newSession(t, b, time.Minute)
	wait := func(s *session) *parkedRequest {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		p := &parkedRequest{s: s, giveUp: cancel, takenBack: make(chan struct{}), done: make(chan error, 1)}
		queued := make(chan struct{})
		req := backends.Request{Lock: writing, Wait: true, Queued: func() { close(queued) }, TakenBack: func() { close(p.takenBack) }}
		go func() {
			var err error
			p.claim, err = s.Acquire(ctx, name, req)
			p.done <- err
		}()
		within(t, queued, "its place in the line")
		return p
	}
	claim, err := holder.Acquire(t.Context(), name, backends.Request{Lock: writing})
	if err != nil {
		t.Fatal(err)
	}
	const n = 40
	var line []*parkedRequest
	before := r.packets(t)
	for range n {
		line = append(line, wait(many))
	}
	packets := r.packets(t) - before
	t.Logf("%d requests of a session: %d packets", n, packets)
	if limit := n + 20; packets > limit { // the first one's look, perhaps the second one's, heartbeats, our own questions
		t.Errorf("%d packets for %d requests of a session, want at most %d", packets, n, limit)
	}
	line = append(line, wait(other))
	for range n / 4 {
		line = append(line, wait(many))
	}
	for i := 0; i < len(line); i += 3 { // the first, and others
		line[i].giveUp()
		if err := <-line[i].done; !errors.Is(err, backends.ErrGivenUp) {
			t.Fatalf("request %d was given up: %v", i, err)
		}
		within(t, line[i].takenBack, "the end of what was given up")
	}
	free := func(s *session, c backends.Claim) {
		t.Helper()
		if _, err := s.Change(t.Context(), name, []backends.Change{{ID: c.ID}}); err != nil {
			t.Fatal(err)
		}
	}
	free(holder, claim)
	last := claim.Token
	for i, p := range line {
		if i%3 == 0 {
			continue
		}
		select {
		case err := <-p.done:
			if err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("request %d of %d is not granted", i, len(line))
		}
		if p.claim.Token <= last {
			t.Errorf("token %d after %d", p.claim.Token, last)
		}
		last = p.claim.Token
		free(p.s, p.claim)
	}
}

func within(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}
