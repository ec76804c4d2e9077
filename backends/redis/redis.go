// Package redis is the Redis back end: locks, names and contents on one Redis
// server, 6.2 or newer, that the nodes share.
//
// The one idea: the server runs the whole rule. Every verb is one Lua script
// (lua/), so it is one round trip and atomic, time is the server's, and a
// release hands the lock to the next in line in the same step in which it
// lets go. Nobody polls: who is let in is told on its session's pub/sub
// channel, and costs nothing until then.
//
// What makes that safe:
//
//   - A session is a lease in a sorted set. A lease that has ended by the
//     server's clock never comes back, and its claims count as absent at once;
//     the others' heartbeats say when the next lease ends, so they clear
//     a dead session away right then.
//   - Messages can be lost. Heartbeats come back on the session's own channel;
//     where they don't, or the connection breaks, the session subscribes anew,
//     asks what became of its requests, and says that anything may be wanted.
//     It also asks once a minute, in one call for all its requests.
//   - Replies can be lost, and requests can be late. A request has an id of
//     the client's choosing and numbered attempts: repeating it carries it out
//     once, and no attempt is obeyed after a later one or after the request was
//     taken back. So an Acquire ends only when its last attempt has been
//     answered or taken back.
//   - Tokens and stamps come from one counter that is never behind the server's
//     clock in microseconds: a server that lost its data does not repeat one.
//
// All keys begin with "lockfs:{cluster}:", one hash tag. Nothing of a lock
// that nobody holds or wants stays, but for the counter. Names of any
// bytes are kept as they are.
//
//   - The server can forget: it comes back without its latest data, or a replica
//     takes over that lacks them. Every connection begins with a check that sees it.
//     Then nobody is granted anything for the length of a lease, while those
//     who live say anew what they hold (epoch.go, lua/epoch.lua).
//
//   - The server can be another one than a moment ago: Sentinels promote a
//     replica, a Redis Cluster moves a slot. Those who know are asked (guide.go). All
//     keys of a cluster have one hash tag, so to us a Redis Cluster is the one
//     master that has it.
//
// Not covered: two masters at a time, or a server's clock that jumps ahead, can
// let a second holder in before the first one's lease has ended; docs/reliability.md
// says what to do about it.
package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"lockfs/backends"
	"lockfs/config"
)

// defaultTimeout stands in for a configuration without one.
const defaultTimeout = time.Second

// poolSize is the number of connections for requests: more than the server,
// which does one thing at a time, can keep busy.
const poolSize = 32

// Backend is a connection to one Redis server for one cluster.
type Backend struct {
	client *goredis.Client
	guide  *guide // nil: the server has an address of its own
	// beats is the connection for heartbeats alone: requests that hang on
	// broken connections must not keep them from a new one.
	beats   *goredis.Client
	keys    []string // the prefix, as the scripts' only key
	where   string
	timeout time.Duration
	// replicas is how many of them have to know of a grant before it counts.
	replicas int
	log      *slog.Logger
	crew     *crew // runs the Store's requests
	// slowUntil is when requests are tried in their callers' goroutines again (quick).
	slowUntil atomic.Int64
	quickOnes atomic.Int32 // how many are being tried so
	// stamp is the greatest stamp that was seen, hold the longest that any
	// session of the cluster may hold what it has after its last renewal (epoch.go).
	stamp atomic.Uint64
	hold  atomic.Int64
}

var _ backends.Backend = (*Backend)(nil)

// quiet turns go-redis's own logging off: what fails is returned.
var quiet = sync.OnceFunc(logging.Disable)

// Open connects to the server and checks that it can be used: a Redis that is
// new enough, that we may write to, that is no replica, and no node of a Redis
// Cluster unless it was named as one. It makes one attempt, bounded by conf.Timeout and ctx.
// The caller closes the Backend. log may be nil.
//
// Errors: backends.ErrUnavailable, ErrRefused, ErrForeign.
func Open(ctx context.Context, conf config.Redis, cluster string, log *slog.Logger) (*Backend, error) {
	quiet()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	where := conf.String()
	options, err := clientOptions(conf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	b := &Backend{keys: []string{prefix(cluster)}, where: where, timeout: options.ReadTimeout, replicas: conf.Replicas, log: log, crew: newCrew()}
	if b.guide = newGuide(conf, cluster, *options, log); b.guide != nil {
		options.Dialer = b.guide.dial
	}
	first := *options // looks at the server before the others may rely on it
	options.OnConnect = b.check
	beats := *options
	beats.PoolSize = 1
	b.client, b.beats = goredis.NewClient(options), goredis.NewClient(&beats)
	_, err = detach(ctx, b.crew, nil, func() (struct{}, error) {
		client := goredis.NewClient(&first)
		defer client.Close()
		defer context.AfterFunc(ctx, func() { _ = client.Close() })()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.timeout)
		defer cancel()
		return struct{}{}, b.verify(bounded, client)
	})
	if err != nil {
		_ = b.Close()
		err = withTLSHint(err, conf.TLS != nil)
		return nil, fmt.Errorf("%s: %w", where, withoutSecret(withoutSecret(err, conf.Password), conf.SentinelPassword))
	}
	return b, nil
}

// prefix is what all keys of a cluster begin with. Its hash tag ends at the
// first closing brace, so the cluster's own are escaped.
func prefix(cluster string) string {
	return "lockfs:{" + strings.NewReplacer("%", "%25", "{", "%7B", "}", "%7D").Replace(cluster) + "}:"
}

// clientOptions turns off all that go-redis does by itself: a script is
// repeated by us, by its id, or not at all.
func clientOptions(conf config.Redis) (*goredis.Options, error) {
	timeout := conf.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	network := conf.Network
	if network == "" {
		network = "tcp"
	}
	options := &goredis.Options{
		Network: network, Addr: conf.Address, DB: conf.DB, Username: conf.Username, Password: conf.Password,
		Protocol: 2, DisableIdentity: true,
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
		ContextTimeoutEnabled: true,
		PoolSize:              poolSize, PipelinePoolSize: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if conf.TLS != nil {
		var err error
		if options.TLSConfig, err = tlsConfig(conf.TLS); err != nil {
			return nil, err
		}
	}
	return options, nil
}

// String names the server, as backends.Backend says.
func (b *Backend) String() string { return b.where }

// Local reports false: other machines may reach the server.
func (b *Backend) Local() bool { return false }

// Close closes all connections, and returns when no request is running any more.
func (b *Backend) Close() error {
	b.crew.close()
	err := b.client.Close()
	if e := b.beats.Close(); err == nil {
		err = e
	}
	b.crew.wait()
	if b.guide != nil {
		b.guide.close()
	}
	if err != nil {
		return fmt.Errorf("closing %s: %w", b.where, err)
	}
	return nil
}

// Open starts a session, as backends.Backend says.
func (b *Backend) Open(ctx context.Context, options backends.SessionOptions) (backends.Session, error) {
	if options.TTL < time.Millisecond {
		return nil, fmt.Errorf("opening a session at %s: a lease of %v is too short", b.where, options.TTL)
	}
	s := newSession(b, options)
	if err := s.start(ctx); err != nil {
		s.end(err)
		b.crew.do(func() { s.goodbye(context.Background()); s.crew.wait() }) // the server may know it already
		return nil, fmt.Errorf("opening a session at %s: %w", b.where, err)
	}
	return s, nil
}

// newID returns what no other session of the cluster has. The node is part of it.
func newID(node string) string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return node + ":" + hex.EncodeToString(b[:])
}

// nodeOf is the node's part of a session's id.
func nodeOf(session string) string {
	return session[:max(0, strings.LastIndexByte(session, ':'))]
}
