package redis

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/lease"
)

//go:embed lua/*.lua
var sources embed.FS

// script is a verb: parts of a script that stand behind each other.
func script(parts ...string) *goredis.Script {
	text := ""
	for _, name := range parts {
		part, err := sources.ReadFile("lua/" + name + ".lua")
		if err != nil {
			panic(err) // embedded: it is there or the package is broken
		}
		text += string(part)
	}
	return goredis.NewScript(text)
}

// The scripts, one a verb.
var (
	checkScript   = script("head", "epoch", "check")
	openScript    = script("head", "epoch", "locks", "open")
	assertScript  = script("head", "epoch", "locks", "assert")
	renewScript   = script("head", "epoch", "locks", "renew")
	reapScript    = script("head", "epoch", "locks", "reap")
	acquireScript = script("head", "acquire1", "epoch", "locks", "acquire")
	changeScript  = script("head", "change1", "epoch", "locks", "change")
	releaseScript = script("head", "release1", "epoch", "locks", "release")
	dropScript    = script("head", "epoch", "locks", "drop")
	recheckScript = script("head", "epoch", "locks", "recheck")
	holdersScript = script("head", "epoch", "locks", "holders")

	statScript      = script("files", "stat")
	statInodeScript = script("files", "statinode")
	listScript      = script("files", "list")
	describeScript  = script("files", "describe")
	createScript    = script("files", "create")
	linkScript      = script("files", "link")
	renameScript    = script("files", "rename")
	removeScript    = script("files", "remove")
	readScript      = script("files", "read")
	writeScript     = script("files", "write")
	updateScript    = script("files", "update")
)

// answer is a script's reply: a word that says the outcome, and fields.
type answer struct {
	outcome string
	fields  []any
}

// text is the field at i, "" where there is none.
func (a answer) text(i int) string {
	if i >= len(a.fields) {
		return ""
	}
	s, _ := a.fields[i].(string)
	return s
}

func (a answer) number(i int) int64 {
	if i >= len(a.fields) {
		return 0
	}
	n, _ := a.fields[i].(int64)
	return n
}

// eval runs a script once. An error that wraps backends.ErrUnavailable leaves
// open whether the server has carried it out, or will.
func (b *Backend) eval(ctx context.Context, c *goredis.Client, s *goredis.Script, args ...any) (answer, error) {
	if s == acquireScript && b.replicas > 0 {
		return b.evalCopied(ctx, c, s, args...)
	}
	return decode(s.Run(ctx, c, b.keys, args...).Slice())
}

// evalCopied is eval for grants that replicas have to know of: the wait for them
// goes out with the script. Where not enough of them know it in time, that is an
// error that wraps backends.ErrUnavailable, and the grant is there all the same.
//
// WAIT is for what its own connection has written. A grant that another session's
// release has made is waited for by a further attempt, whose number is written down.
func (b *Backend) evalCopied(ctx context.Context, c *goredis.Client, s *goredis.Script, args ...any) (answer, error) {
	patience := b.timeout
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end))
	}
	patience = max(patience*3/4, time.Millisecond) // 0 would be for ever
	run := func(send func(pipe goredis.Pipeliner) *goredis.Cmd) (*goredis.Cmd, *goredis.Cmd) {
		pipe := c.Pipeline()
		grant, wait := send(pipe), pipe.Do(ctx, "WAIT", b.replicas, patience.Milliseconds())
		_, _ = pipe.Exec(ctx) // each command has its own error
		return grant, wait
	}
	grant, wait := run(func(pipe goredis.Pipeliner) *goredis.Cmd { return s.EvalSha(ctx, pipe, b.keys, args...) })
	if goredis.HasErrorPrefix(grant.Err(), "NOSCRIPT") {
		grant, wait = run(func(pipe goredis.Pipeliner) *goredis.Cmd { return s.Eval(ctx, pipe, b.keys, args...) })
	}
	a, err := decode(grant.Slice())
	if err != nil || a.outcome != "granted" {
		return a, err
	}
	know, err := wait.Int()
	if err != nil {
		return answer{}, failure(err)
	}
	if know < b.replicas {
		return answer{}, fmt.Errorf("%w: %d of the %d replicas that the configuration asks for know of the lock within %v",
			backends.ErrUnavailable, know, b.replicas, patience)
	}
	return a, nil
}

func decode(reply []any, err error) (answer, error) {
	if err != nil {
		return answer{}, failure(err)
	}
	if len(reply) > 0 {
		if outcome, ok := reply[0].(string); ok {
			return answer{outcome, reply[1:]}, nil
		}
	}
	return answer{}, fmt.Errorf("%w: a script answers %T without an outcome", backends.ErrForeign, reply)
}

// How long to wait before a request is repeated: ever longer between these.
const (
	firstPause = 5 * time.Millisecond
	longPause  = 200 * time.Millisecond
)

// try runs a script until the server has answered or ctx ends. One attempt is
// bounded by the back end's time-out. It must be one that can be repeated.
func (b *Backend) try(ctx context.Context, s *goredis.Script, args ...any) (answer, error) {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		a, err := b.eval(ctx, b.client, s, args...)
		if err == nil || !errors.Is(err, backends.ErrUnavailable) || !sleep(ctx, pause) {
			return a, err
		}
	}
}

// quickTime is how long a request may hold up its caller, who may be
// interrupted: contexts promise an end within 50 ms. slowTime is how long a
// server that took longer is not expected to do better.
const (
	quickTime = 40 * time.Millisecond
	slowTime  = 10 * time.Second
)

// mayBeQuick reports whether quick may be called: the server is fast these
// days, and there is a connection that need not be waited for. quick is to follow.
func (b *Backend) mayBeQuick() bool {
	if lease.Now() < time.Duration(b.slowUntil.Load()) {
		return false
	}
	if b.quickOnes.Add(1) > poolSize {
		b.quickOnes.Add(-1)
		return false
	}
	return true
}

// quick makes one attempt in the caller's goroutine: passing a request to
// another one and its answer back would cost as much as the whole round trip.
// It reports false when there is no answer in a short time; the request may be
// carried out all the same, and is to be repeated on the crew.
func (b *Backend) quick(ctx context.Context, s *goredis.Script, args ...any) (answer, bool, error) {
	defer b.quickOnes.Add(-1)
	defer keepPolling()
	start := lease.Now()
	a, err := b.eval(until{ctx, time.Now().Add(min(quickTime, b.timeout))}, b.client, s, args...)
	if errors.Is(err, backends.ErrUnavailable) {
		if now := lease.Now(); now-start >= quickTime {
			b.slowUntil.Store(int64(now + slowTime))
		}
		return answer{}, false, nil
	}
	return a, true, err
}

// until is a context that knows when it ends without a timer that ends it: the client's connection ends what is under way
// by its own. A timer for each request would have to be told to the thread that waits for the network.
type until struct {
	context.Context
	deadline time.Time
}

func (u until) Deadline() (time.Time, bool) {
	if d, ok := u.Context.Deadline(); ok && d.Before(u.deadline) {
		return d, true
	}
	return u.deadline, true
}

// keepPolling sees to it that some thread waits for the network. The one that was there until it got the answer for this
// goroutine goes on with it, and may then stand in read(2) for the next FUSE request; Go's run time would look at the network again
// only after 10 ms, however many answers and messages have come. A new goroutine makes it start a thread that finds nothing else to do.
func keepPolling() { go func() {}() }

// sleep reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
