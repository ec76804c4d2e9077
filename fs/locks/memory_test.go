package locks

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/queue"
)

// memory is a cluster in this process, ruled by package queue, with messages that
// take random times and sessions that can be cut off: for tests of the table
// alone, in virtual time. The table runs against the real engines in package integration.
type memory struct {
	mu       sync.Mutex
	names    map[string]*queue.State
	sessions map[string]*memorySession
	last     uint64 // token and Seq
	ids      int
	delay    time.Duration // each message takes up to this
	verbs    int           // requests carried out
	prompt   bool          // sessions are backends.Prompt
	gate     chan struct{} // where not nil, Change waits for it
	acquires chan struct{} // where not nil, Acquire waits for it
}

func newMemory() *memory {
	return &memory{names: map[string]*queue.State{}, sessions: map[string]*memorySession{}}
}

type memorySession struct {
	m       *memory
	id      string
	events  chan backends.Event
	over    chan struct{}
	closed  bool
	lapsed  bool                   // its lease has run out, and nobody has noticed yet
	waiting map[string]chan result // by entry
}

// memorySessionOf returns the session that a table has.
func memorySessionOf(t *Table) *memorySession {
	if p, ok := t.session.(promptSession); ok {
		return p.memorySession
	}
	return t.session.(*memorySession)
}

type result struct {
	entry queue.Entry
	err   error
}

func (m *memory) open(context.Context) (backends.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids++
	s := &memorySession{m: m, id: fmt.Sprint("session", m.ids), events: make(chan backends.Event, 1000),
		over: make(chan struct{}), waiting: map[string]chan result{}}
	m.sessions[s.id] = s
	if m.prompt {
		return promptSession{s}, nil
	}
	return s, nil
}

func (m *memory) travel() {
	if m.delay > 0 {
		time.Sleep(rand.N(m.delay))
	}
}

// settle grants and tells; the caller holds m.mu.
func (m *memory) settle(name string) {
	state := m.names[name]
	granted, yielded := state.Settle(func(e *queue.Entry) {
		m.last++
		e.Token, e.Seq = m.last, m.last
	})
	for _, e := range granted {
		m.sessions[e.Session].tell(e.ID, result{entry: e})
	}
	for _, e := range yielded {
		m.sessions[e.Session].tell(e.ID, result{err: backends.ErrYield})
	}
	if len(*state) == 0 {
		delete(m.names, name)
	}
}

func (s *memorySession) tell(id string, r result) {
	if ch := s.waiting[id]; ch != nil {
		ch <- r
		delete(s.waiting, id)
	}
}

func (m *memory) state(name string) *queue.State {
	if m.names[name] == nil {
		m.names[name] = &queue.State{}
	}
	return m.names[name]
}

func (s *memorySession) Acquire(ctx context.Context, name string, r backends.Request) (backends.Claim, error) {
	if s.m.acquires != nil {
		<-s.m.acquires
	}
	s.m.travel()
	s.m.mu.Lock()
	if s.closed {
		s.m.mu.Unlock()
		return backends.Claim{}, backends.ErrSessionOver
	}
	s.m.ids++
	s.m.verbs++
	e := queue.Entry{ID: fmt.Sprint(s.m.ids), Session: s.id, Lock: r.Lock, Held: r.Held, Hint: r.Hint, YieldTo: r.YieldTo}
	state := s.m.state(name)
	if !state.Ask(e) {
		s.m.mu.Unlock()
		return backends.Claim{}, backends.ErrDeadlock
	}
	answer := make(chan result, 1)
	s.waiting[e.ID] = answer
	s.m.settle(name)
	if len(answer) == 0 {
		if !r.Wait {
			delete(s.waiting, e.ID)
			state.Drop(e.ID)
			s.m.mu.Unlock()
			return backends.Claim{}, backends.ErrWouldBlock
		}
		if r.Queued != nil {
			r.Queued()
		}
		s.m.last++
		for _, id := range state.InTheWay(e) {
			s.m.sessions[id].events <- backends.Event{Name: name, Seq: s.m.last}
		}
	}
	s.m.mu.Unlock()
	select {
	case a := <-answer:
		s.m.travel()
		if a.err != nil {
			return backends.Claim{}, a.err
		}
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		if s.closed {
			return backends.Claim{}, backends.ErrSessionOver
		}
		contended := s.m.state(name).Contended(s.id, a.entry.Lock)
		return backends.Claim{ID: e.ID, Lock: r.Lock, Hint: r.Hint, Token: a.entry.Token, Seq: a.entry.Seq, Contended: contended}, nil
	case <-s.over:
		return backends.Claim{}, backends.ErrSessionOver
	case <-ctx.Done():
		go func() {
			s.Change(context.Background(), name, []backends.Change{{ID: e.ID}})
			if r.TakenBack != nil {
				r.TakenBack()
			}
		}()
		return backends.Claim{}, fmt.Errorf("%w: %w", backends.ErrGivenUp, ctx.Err())
	}
}

func (s *memorySession) Change(_ context.Context, name string, changes []backends.Change) ([]backends.Claim, error) {
	if s.m.gate != nil {
		<-s.m.gate
	}
	s.m.travel()
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.closed {
		return nil, backends.ErrSessionOver
	}
	s.m.verbs++
	state := s.m.state(name)
	var now []backends.Claim
	for _, ch := range changes {
		delete(s.waiting, ch.ID)
		i := state.Find(ch.ID)
		if i < 0 {
			continue
		}
		old := (*state)[i]
		var ids []string
		for _, keep := range ch.To {
			s.m.ids++
			id := fmt.Sprint(s.m.ids)
			ids = append(ids, id)
			now = append(now, backends.Claim{ID: id, Lock: keep.Lock, Hint: keep.Hint, Token: old.Token, Seq: old.Seq})
		}
		if len(ch.To) == 0 {
			state.Drop(ch.ID)
		} else {
			state.Replace(ch.ID, ids, ch.To)
		}
	}
	s.m.settle(name)
	return now, nil
}

// Drop is as backends.Bulk says.
func (s *memorySession) Drop(ctx context.Context, claims []backends.Named) error {
	for _, c := range claims {
		if _, err := s.Change(ctx, c.Name, []backends.Change{{ID: c.ID}}); err != nil {
			return err
		}
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.verbs -= len(claims) - 1
	return nil
}

func (s *memorySession) Holders(_ context.Context, name string, lock backends.Lock) ([]backends.Holder, error) {
	s.m.travel()
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	var out []backends.Holder
	for _, e := range *s.m.state(name) {
		if e.Granted && e.Session != s.id && e.Conflicts(lock) {
			out = append(out, backends.Holder{Claim: backends.Claim{ID: e.ID, Lock: e.Lock, Hint: e.Hint}, Session: e.Session})
		}
	}
	return out, nil
}

func (s *memorySession) ID() string                    { return s.id }
func (s *memorySession) RelabelsQuietly()              {}
func (s *memorySession) Events() <-chan backends.Event { return s.events }
func (s *memorySession) Done() <-chan struct{}         { return s.over }
func (s *memorySession) Err() error                    { return backends.ErrSessionOver }
func (s *memorySession) Close(context.Context) error   { s.end(); return nil }

func (s *memorySession) Valid() bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return !s.closed && !s.lapsed
}

// lapse lets the lease run out without the session's end being known. To the server it holds on.
func (s *memorySession) lapse() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.lapsed = true
}

func (s *memorySession) Deadline() time.Duration {
	if !s.Valid() {
		return 0
	}
	return backends.NoDeadline
}

// live are the sessions that there are now.
func (m *memory) live() []*memorySession {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.sessions))
}

// end is a goodbye or a lost lease.
func (s *memorySession) end() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	close(s.over)
	delete(s.m.sessions, s.id)
	for name, state := range s.m.names {
		state.DropSession(s.id)
		s.m.settle(name)
	}
}

// requireEmpty checks that nobody left anything behind.
func (m *memory) requireEmpty(t *testing.T) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, state := range m.names {
		if len(*state) > 0 {
			t.Errorf("%q has entries left: %+v", name, *state)
		}
	}
}

func newTableWith(t *testing.T, m *memory, options Options) *Table {
	t.Helper()
	options.Open = m.open
	table, err := New(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func whole(mode backends.Mode) backends.Lock { return backends.Lock{Range: backends.Whole, Mode: mode} }

func bytesOf(first, last uint64, mode backends.Mode) backends.Lock {
	return backends.Lock{Range: backends.Range{First: first, Last: last}, Mode: mode}
}

func flock(handle uint64, mode backends.Mode, wait bool) Request {
	return Request{Name: "x", Owner: Owner{Description, handle}, Handle: handle, Door: Flock, Lock: whole(mode), Wait: wait}
}

func fcntl(owner, handle uint64, lock backends.Lock, wait bool) Request {
	return Request{Name: "x", Owner: Owner{Process, owner}, Handle: handle, Door: Fcntl, Lock: lock, Wait: wait, PID: uint32(owner)}
}

// never is the YieldTo of an open that always waits.
const never backends.Hint = 0

func open(handle uint64, yieldTo backends.Hint, wait bool) Request {
	return Request{Name: "x", Owner: Owner{Description, handle}, Handle: handle, Door: Open, Lock: whole(backends.Write),
		Writable: true, Wait: wait, YieldTo: yieldTo}
}

// universe is the last few bytes of the address space, without a gap, to
// compare byte by byte.
var universe = func() (all []uint64) {
	for b := uint64(backends.MaxByte - 7); b <= backends.MaxByte; b++ {
		all = append(all, b)
	}
	return all
}()

func anyRange() backends.Range {
	a, b := universe[rand.IntN(len(universe))], universe[rand.IntN(len(universe))]
	return backends.Range{First: min(a, b), Last: max(a, b)}
}

func anyMode() backends.Mode { return backends.Mode(1 + rand.IntN(2)) }

func inRange(r backends.Range) []uint64 {
	return slices.DeleteFunc(slices.Clone(universe), func(b uint64) bool { return b < r.First || b > r.Last })
}
