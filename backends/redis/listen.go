package redis

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
)

// toAll is the channel, behind the prefix, of what is told all sessions.
const toAll = "c:"

// listen reads the session's channel until the session is over, subscribing
// anew when the connection breaks. ready takes the outcome of the first
// subscription; where that fails, listen ends.
func (s *session) listen(ready chan<- error) {
	first := true
	for pause := firstPause; s.ctx.Err() == nil; pause = min(2*pause, longPause) {
		err := s.listenOnce(func() {
			pause = firstPause
			if first {
				ready <- nil
				first = false
				return
			}
			s.subscribed()
		})
		if first {
			ready <- err
			return
		}
		if !sleep(s.ctx, pause) {
			return
		}
		s.log.Warn("subscribing anew", "backend", s.b.where, "error", err)
	}
}

// listenOnce reads from one connection until it breaks. confirmed is called when
// the server has taken the subscription: what is sent from then on arrives.
func (s *session) listenOnce(confirmed func()) error {
	channel := s.b.client.Subscribe(s.ctx)
	defer channel.Close()
	stop := context.AfterFunc(s.ctx, func() { _ = channel.Close() })
	defer stop()
	s.mu.Lock()
	s.channel = channel
	own := s.b.keys[0] + "c:" + s.id
	channels := []string{own}
	if s.joined {
		channels = []string{s.b.keys[0] + toAll, own}
	}
	s.mu.Unlock()
	if err := channel.Subscribe(s.ctx, channels...); err != nil {
		return fmt.Errorf("subscribing: %w", failure(err))
	}
	for {
		message, err := channel.ReceiveTimeout(s.ctx, 0)
		if err != nil {
			return fmt.Errorf("receiving messages: %w", failure(err))
		}
		switch m := message.(type) {
		case *goredis.Subscription:
			if m.Channel == own {
				confirmed()
			}
		case *goredis.Message:
			s.told(m.Payload)
		}
	}
}

// unlisten breaks the connection on which no messages arrive.
func (s *session) unlisten() {
	s.mu.Lock()
	channel := s.channel
	s.mu.Unlock()
	_ = channel.Close() // listen takes a new one
}

// subscribed makes up for messages that were lost before the subscription.
func (s *session) subscribed() {
	s.mu.Lock()
	s.confirmed++
	s.mu.Unlock()
	s.echo.Store(s.beat.Load())
	s.box.lost()
	s.crew.do(s.probe)
	s.crew.do(s.recheckAll)
}

// told takes a message from a script: what it is, fields, and a name or id of
// any bytes at its end.
func (s *session) told(message string) {
	kind, rest, _ := strings.Cut(message, " ")
	switch kind {
	case "h":
		if n, err := strconv.ParseUint(rest, 10, 64); err == nil {
			s.echo.Store(n)
		}
	case "w":
		seq, name, _ := strings.Cut(rest, " ")
		if n, err := strconv.ParseUint(seq, 10, 64); err == nil {
			s.box.wanted(name, n)
		}
	case "g":
		epoch, outcomes, _ := strings.Cut(rest, " ")
		s.outcomes(epoch, strings.Fields(outcomes))
	case "over":
		s.end(fmt.Errorf("another session was granted what this one holds, by a server that had forgotten it: %w", backends.ErrSessionOver))
	case "new": // to all: the server may have forgotten
		s.crew.do(s.probe)
	case "open": // to all: a grace period is over
		s.crew.do(s.recheckAll)
	}
}

// outcomes takes what became of requests: number, token and contended flag of each; the
// token is "0" where it yields.
func (s *session) outcomes(epoch string, fields []string) {
	for ; len(fields) >= 3; fields = fields[3:] {
		a := answer{outcome: "yield"}
		if fields[1] != "0" {
			a = answer{"granted", []any{fields[1], fields[2]}}
		}
		s.outcome(epoch, s.full(fields[0]), a)
	}
}

// mailbox keeps events until they are read, equal names merged, so that a slow
// reader never holds up the messages behind them.
type mailbox struct {
	out  chan backends.Event
	wake chan struct{}

	mu     sync.Mutex
	byName map[string]uint64
	any    bool
}

func newMailbox() *mailbox {
	return &mailbox{out: make(chan backends.Event), wake: make(chan struct{}, 1), byName: map[string]uint64{}}
}

// wanted: claims on name with a smaller stamp are wanted.
func (m *mailbox) wanted(name string, seq uint64) {
	m.mu.Lock()
	m.byName[name] = max(m.byName[name], seq)
	m.mu.Unlock()
	m.ring()
}

// lost: any claim may be wanted.
func (m *mailbox) lost() {
	m.mu.Lock()
	m.any = true
	m.mu.Unlock()
	m.ring()
}

func (m *mailbox) ring() {
	select {
	case m.wake <- struct{}{}:
	default: // it rings already
	}
}

// run hands the events out until ctx ends.
func (m *mailbox) run(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		for _, event := range m.take() {
			select {
			case m.out <- event:
			case <-ctx.Done():
				return
			}
		}
	}
}

// take empties the mailbox.
func (m *mailbox) take() []backends.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	var events []backends.Event
	if m.any {
		events = []backends.Event{{Seq: math.MaxUint64}} // it includes all others
	} else {
		for name, seq := range m.byName {
			events = append(events, backends.Event{Name: name, Seq: seq})
		}
	}
	m.any = false
	clear(m.byName)
	return events
}
