package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/backendtest"
	"lockfs/backends/queue"
	"lockfs/backends/testserver"
)

func seed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(backendtest.SeedVariable); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d", backendtest.SeedVariable, seed)
	return seed
}

// TestScriptsFollowQueue drives the scripts by themselves, far more often
// than the conformance suite can, beside package queue: after each step both have the
// same claims and the same queue.
func TestScriptsFollowQueue(t *testing.T) {
	server := testserver.Redis(t)
	raw, b := rawClient(t, server), connect(t, server.Addr(), "test")
	messages := raw.PSubscribe(t.Context(), prefix("test")+"c:?*") // not what all are told: who hears that counts
	t.Cleanup(func() { _ = messages.Close() })
	if _, err := messages.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	seed := seed(t)
	for round := range 150 {
		r := &twin{T: t, raw: raw, b: b, messages: messages, rng: rand.New(rand.NewPCG(seed, uint64(round))), name: fmt.Sprintf("n%d", round), epoch: noEpoch,
			plain: round % 3, wanted: map[string]bool{}, tokens: map[string]uint64{}}
		for i := range 4 {
			r.open(i)
		}
		for range 60 {
			r.step()
			r.compare()
		}
		for i := range r.sessions {
			r.eval(reapScript, r.sessions[i], "end")
		}
	}
	wantKeys(t, raw)
}

// twin is a name at the server and its model.
type twin struct {
	*testing.T
	raw      *goredis.Client
	b        *Backend
	messages *goredis.PubSub // what all sessions are told
	rng      *rand.Rand
	name     string
	sessions [4]string
	epoch    string
	ids      int
	plain    int // 1: mostly write requests on the whole name, for which scripts have a short way; 2: and little else in them
	model    queue.State
	wanted   map[string]bool   // by claim: another session waited for it when it was granted
	tokens   map[string]uint64 // of the claims seen at the server
	last     uint64            // the greatest of them
	trace    []string
}

// once is true once in n times, in rounds that are at least so plain once in n*n.
func (r *twin) once(n, plain int) bool {
	if r.plain >= plain {
		n *= n
	}
	return r.rng.IntN(n) == 0
}

// settle settles the model, and notes which new claims are wanted.
func (r *twin) settle() []queue.Entry {
	granted, yielded := r.model.Settle(nil)
	for _, e := range granted {
		r.wanted[e.ID] = r.model.Contended(e.Session, e.Lock)
	}
	return yielded
}

func (r *twin) fail(format string, args ...any) {
	r.Helper()
	r.Fatalf("%s\n%s", strings.Join(r.trace, "\n"), fmt.Sprintf(format, args...))
}

func (r *twin) eval(s *goredis.Script, args ...any) answer {
	r.Helper()
	args[0] = r.epoch + args[0].(string)
	a, err := r.b.eval(r.Context(), r.b.client, s, args...)
	if err != nil {
		r.fail("%v", err)
	}
	return a
}

func (r *twin) open(i int) {
	r.sessions[i] = newID(fmt.Sprint(i))
	r.epoch = r.eval(openScript, r.sessions[i], 3600_000, 1000, newEpochID(), 0, 0).text(0)
}

func (r *twin) lock() backends.Lock {
	l := backends.Lock{Range: backends.Whole, Mode: backends.Write}
	if r.once(2, 1) {
		l.Mode = backends.Read
	}
	if r.once(3, 1) {
		a, b := uint64(r.rng.IntN(8)), uint64(r.rng.IntN(8))
		l.Range = backends.Range{First: min(a, b), Last: max(a, b)}
	}
	return l
}

func (r *twin) step() {
	switch n := r.rng.IntN(20); {
	case n < 10 && len(r.model) < 14:
		r.acquire()
	case n == 19:
		r.die()
	case len(r.model) > 0:
		e := r.model[r.rng.IntN(len(r.model))]
		switch {
		case !e.Granted:
			r.note("take back %s", e.ID)
			r.model.Drop(e.ID)
			r.eval(dropScript, e.Session, r.name, e.ID, "0")
		case n < 13:
			r.note("release %s", e.ID)
			r.model.Drop(e.ID)
			r.eval(releaseScript, e.Session, "another name", r.newID(e.Session), r.name, e.ID)
		case n < 15:
			r.note("drop %s", e.ID)
			r.model.Drop(e.ID)
			r.eval(changeScript, e.Session, r.name, e.ID, 0)
		default:
			r.replace(e)
		}
		r.settle()
	}
}

func (r *twin) note(format string, args ...any) {
	r.trace = append(r.trace, fmt.Sprintf(format, args...))
}

func (r *twin) newID(session string) string {
	r.ids++
	return session + "/" + strconv.Itoa(r.ids)
}

func (r *twin) acquire() {
	session := r.sessions[r.rng.IntN(4)]
	req := backends.Request{Lock: r.lock(), Hint: backends.Hint(r.rng.IntN(4)), Wait: r.rng.IntN(4) > 0}
	if r.once(4, 2) {
		req.YieldTo = backends.Hint(1 + r.rng.IntN(3))
	}
	for _, e := range r.model {
		if e.Granted && e.Session == session && r.once(3, 2) {
			req.Held = append(req.Held, e.Lock)
		}
	}
	r.ask(session, req)
}

// ask makes a request of both, and checks that it comes to the same.
func (r *twin) ask(session string, req backends.Request) {
	r.Helper()
	id := r.newID(session)
	r.note("acquire %s %+v", id, req)
	r.told()
	a := r.eval(acquireScript, session, r.name, id, 1, flag(req.Wait), encodeRequest(req))
	got := a.outcome
	want := "granted"
	if !r.model.Ask(queue.Entry{ID: id, Session: session, Lock: req.Lock, Held: req.Held, Hint: req.Hint, YieldTo: req.YieldTo}) {
		want = "deadlock"
	} else {
		yielded := r.settle()
		i := r.model.Find(id)
		switch {
		case slices.ContainsFunc(yielded, func(e queue.Entry) bool { return e.ID == id }):
			want = "yield"
		case !r.model[i].Granted && req.Wait:
			want = "queued"
		case !r.model[i].Granted:
			want = "blocked"
			r.model.Drop(id)
		}
	}
	if got != want {
		r.fail("the script says %q, the model %q", got, want)
	}
	if got == "queued" {
		r.compareWanted(session, req.Lock, "w "+a.text(1)+" "+r.name)
		if last, err := r.raw.Get(r.Context(), prefix("test")+"seq").Result(); err != nil || last != a.text(1) {
			r.fail("the last stamp is %s (%v), the request's %s", last, err, a.text(1))
		}
	}
}

// compareWanted checks that just those sessions were told who have claims in the way of a request that waits.
func (r *twin) compareWanted(session string, lock backends.Lock, message string) {
	r.Helper()
	want := map[string]string{}
	for _, e := range r.model {
		if e.Granted && e.Session != session && e.Lock.Conflicts(lock) {
			want[e.Session] = message
		}
	}
	if got := r.told(); !maps.Equal(got, want) {
		r.fail("the sessions were told %q, want %q", got, want)
	}
}

// told returns what was told since the last call, by session.
func (r *twin) told() map[string]string {
	channel := prefix("test") + "c:"
	if err := r.raw.Publish(r.Context(), channel+"end", "").Err(); err != nil {
		r.fail("%v", err)
	}
	told := map[string]string{}
	for {
		m, err := r.messages.ReceiveMessage(r.Context())
		if err != nil {
			r.fail("%v", err)
		}
		session := strings.TrimPrefix(m.Channel, channel)
		if session == "end" {
			return told
		}
		told[session] += m.Payload // twice would be seen
	}
}

func (r *twin) replace(e queue.Entry) {
	var to []backends.Keep
	var ids []string
	args := []any{e.Session, r.name, e.ID, 0}
	for range r.rng.IntN(3) {
		l := e.Lock
		if r.rng.IntN(2) == 0 && l.First < l.Last {
			l.Last = l.First + (l.Last-l.First)/2
		}
		l.Mode = min(l.Mode, backends.Read+backends.Mode(r.rng.IntN(2)))
		keep := backends.Keep{Lock: l, Hint: backends.Hint(r.rng.IntN(4))}
		id := r.newID(e.Session)
		to, ids = append(to, keep), append(ids, id)
		r.wanted[id], r.tokens[id] = r.wanted[e.ID], r.tokens[e.ID]
		args = append(args, id, encodeLock(l, keep.Hint))
	}
	args[3] = len(to)
	r.note("replace %s by %v %+v", e.ID, ids, to)
	r.model.Replace(e.ID, ids, to)
	first := r.eval(changeScript, slices.Clone(args)...)
	if again := r.eval(changeScript, args...); !slices.Equal(first.fields, again.fields) {
		r.fail("a repeated change returns %v, at first %v", again, first)
	}
}

// die lets a session's lease run out. The next script that touches the name is
// to find it gone, or else who clears the dead away.
func (r *twin) die() {
	i := r.rng.IntN(4)
	r.note("session %s dies", r.sessions[i])
	pipe := r.raw.TxPipeline()
	pipe.HSet(r.Context(), prefix("test")+"s:"+r.sessions[i], "e", 1)
	pipe.ZAdd(r.Context(), prefix("test")+"sessions", goredis.Z{Score: 1, Member: r.sessions[i]})
	if _, err := pipe.Exec(r.Context()); err != nil {
		r.fail("%v", err)
	}
	// Where one of the dead waited, what it held back may be settled by who clears them away.
	checked := !slices.ContainsFunc(r.model, func(e queue.Entry) bool { return !e.Granted && e.Session == r.sessions[i] })
	r.model.DropSession(r.sessions[i])
	r.settle()
	alive := r.sessions[(i+1)%4]
	if r.rng.IntN(2) == 0 {
		if req := (backends.Request{Lock: r.lock(), YieldTo: 1}); checked {
			r.ask(alive, req)
		} else {
			id := r.newID(alive)
			r.eval(acquireScript, alive, r.name, id, 1, "0", encodeRequest(req))
			r.eval(changeScript, alive, r.name, id, 0)
		}
	}
	r.eval(reapScript, alive, "dead")
	r.open(i)
}

// compare checks that server and model have the same claims and the same queue.
func (r *twin) compare() {
	r.Helper()
	claims, err1 := r.raw.HGetAll(r.Context(), prefix("test")+"g:"+r.name).Result()
	waiting, err2 := r.raw.ZRange(r.Context(), prefix("test")+"q:"+r.name, 0, -1).Result()
	counts, err3 := r.raw.HGetAll(r.Context(), prefix("test")+"m:"+r.name).Result()
	if err := errors.Join(err1, err2, err3); err != nil {
		r.fail("%v", err)
	}
	if want := r.counts(); !maps.Equal(counts, want) {
		r.fail("the server counts %v, want %v", counts, want)
	}
	var queued []string
	granted, last := 0, r.last
	for _, e := range r.model {
		if !e.Granted {
			queued = append(queued, e.ID)
			continue
		}
		granted++
		value := claims[e.ID]
		if !strings.HasPrefix(value, encodeLock(e.Lock, e.Hint)) {
			r.fail("claim %s is %q at the server", e.ID, value)
		}
		if r.wanted[e.ID] && value[specLength] != '1' {
			r.fail("claim %s is not contended at the server, though somebody waits for it", e.ID)
		}
		token, err := strconv.ParseUint(value[specLength+1:], 10, 64)
		if was := r.tokens[e.ID]; err != nil || was != 0 && token != was || was == 0 && token <= r.last {
			r.fail("claim %s has the token %d (%v), it had %d, and %d was given before", e.ID, token, err, was, r.last)
		}
		r.tokens[e.ID], last = token, max(last, token)
	}
	r.last = last
	if granted != len(claims) || !slices.Equal(queued, waiting) {
		r.fail("the server has claims %v and queue %v, the model %d claims and queue %v", claims, waiting, granted, queued)
	}
}

// counts is what the server is to count over the queue (lua/head.lua).
func (r *twin) counts() map[string]string {
	n := map[string]int{}
	for _, e := range r.model {
		if e.Granted {
			continue
		}
		n["s"+e.Session]++
		if len(e.Held) > 0 {
			n["h"]++
		}
		if e.YieldTo > 0 {
			n[strconv.Itoa(int(e.YieldTo))]++
		}
	}
	counts := map[string]string{}
	for what, n := range n {
		counts[what] = strconv.Itoa(n)
	}
	return counts
}

// TestBrokenConnections: connections break all the time, under locks taken,
// waited for, given up and let go. Nobody is in together, everybody comes to an end,
// nothing stays behind.
func TestBrokenConnections(t *testing.T) {
	const nodes, owners, rounds = 3, 6, 25
	server := testserver.Redis(t)
	raw := rawClient(t, server)
	seed := seed(t)
	var inside [2]atomic.Int32
	var broken, given atomic.Int32
	var all sync.WaitGroup
	stop := make(chan struct{})
	var breaker sync.WaitGroup
	for n := range nodes {
		line := newLine(t, server.Addr())
		s := openOn(t, connect(t, line.addr(), "test"), time.Minute)
		breaker.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(1+rng.IntN(40)) * time.Millisecond):
					line.reset()
					broken.Add(1)
				}
			}
		})
		for o := range owners {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(100*n+o)))
				for range rounds {
					name := rng.IntN(2)
					ctx, cancel := context.WithCancel(t.Context())
					if rng.IntN(3) == 0 {
						ctx, cancel = context.WithTimeout(t.Context(), time.Duration(rng.IntN(30))*time.Millisecond)
					}
					c, err := s.Acquire(ctx, strconv.Itoa(name), writing)
					cancel()
					if err != nil {
						if ctx.Err() == nil {
							t.Errorf("Acquire: %v", err)
						}
						given.Add(1)
						continue
					}
					s.inside(t, &inside[name], n)
					if rng.IntN(2) == 0 {
						_, err = s.Change(t.Context(), strconv.Itoa(name), []backends.Change{{ID: c.ID}})
					} else {
						err = s.Drop(t.Context(), []backends.Named{{Name: "another", ID: "never"}, {Name: strconv.Itoa(name), ID: c.ID}})
					}
					if err != nil {
						t.Errorf("giving the claim back: %v", err)
					}
				}
			})
		}
	}
	all.Wait()
	close(stop)
	breaker.Wait()
	t.Logf("%d connections broken, %d of %d requests given up", broken.Load(), given.Load(), nodes*owners*rounds)
	for name := range inside {
		testserver.Within(t, 10*time.Second, "nothing is left", func() bool { return entries(t, raw, "test", strconv.Itoa(name)) == 0 })
	}
}

// inside stays in the critical section for a moment. Owners of one node may
// be in together, for the back end decides among nodes only: holders is the node, +1, times 1000, and how many.
func (s *session) inside(t *testing.T, holders *atomic.Int32, node int) {
	mark := int32(node+1) * 1000
	for {
		was := holders.Load()
		if was != 0 && was/1000 != mark/1000 {
			t.Errorf("node %d is in together with node %d", node, was/1000-1)
			return
		}
		if holders.CompareAndSwap(was, max(was, mark)+1) {
			break
		}
	}
	time.Sleep(time.Millisecond) // the work
	for {
		was := holders.Load()
		next := was - 1
		if next%1000 == 0 {
			next = 0
		}
		if holders.CompareAndSwap(was, next) {
			return
		}
	}
}
