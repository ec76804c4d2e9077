package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/backends/lease"
	"lockfs/config"
)

// guide finds the server that has our keys, where that can change: by asking the
// Sentinels for their master, or nodes of a Redis Cluster for the owner of our hash
// slot. Every connection begins with the question, and every heartbeat asks
// again: connections to another server than the one that is named now are broken, for a
// master that was replaced may go on answering for a while.
//
// What most of those who are configured say counts, and among them the one with the latest
// configuration epoch: a few that are cut off together with an old master can't lead
// anybody to it. As long as fewer than most answer, nothing changes, for without them no other
// server becomes the master.
type guide struct {
	what    string // who is asked, for errors
	clients []*goredis.Client
	ask     func(context.Context, *goredis.Client) (sight, error)
	tls     *tls.Config
	timeout time.Duration
	log     *slog.Logger
	crew    *crew

	mu     sync.Mutex
	at     string // the server; "" before the first answer
	lame   bool   // too few answer
	search *search
	conns  map[*guided]bool
}

// sight is what one of those who are asked says: the greater epoch is the later news.
type sight struct {
	addr  string
	epoch uint64
}

// search is one round of questions, shared by all who want to know at the time.
type search struct {
	began time.Duration
	done  chan struct{} // closed when the rest is set
	addr  string
	err   error
}

// guided is a connection to a server that a guide has named.
type guided struct {
	*net.TCPConn
	guide *guide
	addr  string
}

// Close closes the connection.
func (c *guided) Close() error {
	c.guide.mu.Lock()
	delete(c.guide.conns, c)
	c.guide.mu.Unlock()
	return c.TCPConn.Close()
}

// newGuide returns nil for a server with an address of its own. The caller closes the guide.
func newGuide(conf config.Redis, cluster string, options goredis.Options, log *slog.Logger) *guide {
	g := &guide{tls: options.TLSConfig, timeout: options.DialTimeout, log: log, crew: newCrew(), conns: map[*guided]bool{}}
	options.PoolSize, options.DB = 2, 0
	// Those who do not answer are not to use up the time of who waits for the others.
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = g.timeout/2, g.timeout/2, g.timeout/2
	addrs := conf.Sentinels
	switch {
	case conf.Sentinels != nil:
		g.what = "the Sentinels"
		g.ask = func(ctx context.Context, c *goredis.Client) (sight, error) {
			return askSentinel(ctx, c, conf.MasterName)
		}
		options.Username, options.Password = conf.SentinelUsername, conf.SentinelPassword
	case conf.ClusterNodes != nil:
		g.what, addrs = "the nodes of the Redis Cluster", conf.ClusterNodes
		g.ask = func(ctx context.Context, c *goredis.Client) (sight, error) { return askNode(ctx, c, prefix(cluster)) }
	default:
		return nil
	}
	for _, addr := range addrs {
		each := options
		each.Addr = addr
		g.clients = append(g.clients, goredis.NewClient(&each))
	}
	return g
}

// close ends all that the guide does. The connections are their pools' to close.
func (g *guide) close() {
	g.crew.close()
	for _, c := range g.clients {
		_ = c.Close() // nothing is lost with it
	}
	g.crew.wait()
}

// dial connects to the server that is named now, as goredis.Options wants it.
func (g *guide) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	addr, err := g.find(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{Timeout: g.timeout}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := &guided{raw.(*net.TCPConn), g, addr}
	g.mu.Lock()
	g.conns[conn] = true
	moved := g.at != addr
	g.mu.Unlock()
	if moved {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: the master has moved from %s meanwhile", backends.ErrUnavailable, addr)
	}
	if g.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, g.tlsFor(addr))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

func (g *guide) tlsFor(addr string) *tls.Config {
	own := g.tls.Clone()
	if own.ServerName == "" {
		own.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return own
}

// look makes sure that no connection leads to another server than the one that is named now.
// It does not wait for the answer.
func (g *guide) look() { g.current() }

// find returns the server that is named now.
func (g *guide) find(ctx context.Context) (string, error) {
	s := g.current()
	if s == nil {
		return "", fmt.Errorf("asking %s: %w: %w", g.what, backends.ErrUnavailable, errClosed)
	}
	select {
	case <-s.done:
		return s.addr, s.err
	case <-ctx.Done():
		return "", fmt.Errorf("asking %s: %w: %w", g.what, backends.ErrUnavailable, context.Cause(ctx))
	}
}

// fresh is for how long an answer serves those who come after it.
const fresh = 20 * time.Millisecond

// current returns the search that is under way, or was a moment ago; nil: the guide is closed.
func (g *guide) current() *search {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.search; s != nil {
		select {
		case <-s.done:
			if lease.Now()-s.began < fresh {
				return s
			}
		default:
			return s
		}
	}
	s := &search{began: lease.Now(), done: make(chan struct{})}
	if !g.crew.do(func() { g.run(s) }) {
		return nil
	}
	g.search = s
	return s
}

// run asks all, and ends the search when most have answered, or nobody is left.
func (g *guide) run(s *search) {
	type answer struct {
		sight
		err error
	}
	answers := make(chan answer, len(g.clients))
	for _, c := range g.clients {
		if !g.crew.do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), g.timeout/2)
			defer cancel()
			found, err := g.ask(ctx, c)
			if err != nil {
				err = fmt.Errorf("%s: %w", c.Options().Addr, err)
			}
			answers <- answer{found, err}
		}) {
			answers <- answer{err: errClosed}
		}
	}
	most := len(g.clients)/2 + 1
	var latest sight
	var errs []error
	for count := 0; count < most && count+len(errs) < len(g.clients); {
		a := <-answers
		if a.err != nil {
			errs = append(errs, a.err)
			continue
		}
		count++
		if latest.addr == "" || a.epoch > latest.epoch {
			latest = a.sight
		}
	}
	if len(errs) > len(g.clients)-most {
		latest.addr = "" // too few have answered
	}
	s.addr, s.err = g.settle(latest.addr, errors.Join(errs...))
	close(s.done)
}

// errNoMaster: too few of those who are asked answer.
var errNoMaster = errors.New("too few say where the master is")

// settle takes what was found: "" where too few have answered, for the reasons in err.
func (g *guide) settle(addr string, err error) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if addr == "" {
		if g.at == "" {
			return "", fmt.Errorf("%w, of %s: %w", errNoMaster, g.what, err)
		}
		if !g.lame {
			g.log.Warn("too few of "+g.what+" answer; staying where the master was", "master", g.at, "error", err)
		}
		g.lame = true
		return g.at, nil
	}
	g.lame = false
	if g.at != "" && g.at != addr {
		g.log.Warn("the master has moved", "from", g.at, "to", addr)
	}
	g.at = addr
	for c := range g.conns {
		if c.addr != addr {
			delete(g.conns, c)
			_ = c.TCPConn.Close()
		}
	}
	return addr, nil
}

// askSentinel asks one Sentinel for the master.
func askSentinel(ctx context.Context, c *goredis.Client, name string) (sight, error) {
	reply, err := c.Do(ctx, "SENTINEL", "MASTER", name).StringSlice()
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "No such master"):
		return sight{}, fmt.Errorf("%w: it knows no master named %s; check master_name", backends.ErrRefused, name)
	case strings.Contains(err.Error(), "unknown command"):
		return sight{}, fmt.Errorf("%w: it is no Sentinel", backends.ErrForeign)
	case goredis.HasErrorPrefix(err, "WRONGPASS"), goredis.HasErrorPrefix(err, "NOAUTH"), goredis.HasErrorPrefix(err, "NOPERM"):
		return sight{}, fmt.Errorf("%w (check sentinel_username and sentinel_password)", failure(err))
	default:
		return sight{}, failure(err)
	}
	fields := map[string]string{}
	for i := 0; i+1 < len(reply); i += 2 {
		fields[reply[i]] = reply[i+1]
	}
	epoch, err := strconv.ParseUint(fields["config-epoch"], 10, 64)
	if err != nil || fields["ip"] == "" || fields["port"] == "" {
		return sight{}, fmt.Errorf("%w: a Sentinel describes the master as %q", backends.ErrForeign, reply)
	}
	return sight{net.JoinHostPort(fields["ip"], fields["port"]), epoch}, nil
}

// askNode asks one node of a Redis Cluster for the owner of the slot of a key.
func askNode(ctx context.Context, c *goredis.Client, key string) (sight, error) {
	slot, err := c.ClusterKeySlot(ctx, key).Result()
	var nodes string
	if err == nil {
		nodes, err = c.ClusterNodes(ctx).Result()
	}
	if err != nil {
		if strings.Contains(err.Error(), "cluster support disabled") {
			return sight{}, fmt.Errorf("%w: it is no node of a Redis Cluster; name it by host", backends.ErrForeign)
		}
		if err = failure(err); errors.Is(err, backends.ErrRefused) {
			err = fmt.Errorf("%w (it has to know the username and password that the master does, and let the user call CLUSTER)", err)
		}
		return sight{}, err
	}
	for line := range strings.Lines(nodes) {
		// id, address, flags, master, ping, pong, epoch, link, slots
		fields := strings.Fields(line)
		if len(fields) < 9 || !owns(fields[8:], slot) {
			continue
		}
		addr, _, _ := strings.Cut(fields[1], "@")
		colon := strings.LastIndexByte(addr, ':')
		epoch, err := strconv.ParseUint(fields[6], 10, 64)
		if err != nil || colon < 0 {
			return sight{}, fmt.Errorf("%w: a node describes another one as %q", backends.ErrForeign, line)
		}
		host := addr[:colon]
		if host == "" { // itself, as long as no other node has told it its address
			host, _, _ = net.SplitHostPort(c.Options().Addr)
		}
		return sight{net.JoinHostPort(host, addr[colon+1:]), epoch}, nil
	}
	return sight{}, fmt.Errorf("%w: no node of the Redis Cluster has slot %d", backends.ErrUnavailable, slot)
}

// owns reports whether a slot is in a list of "7", "9-12" and, of slots that move, "[93->-id]".
func owns(slots []string, slot int64) bool {
	for _, s := range slots {
		first, last, isRange := strings.Cut(s, "-")
		if !isRange {
			last = first
		}
		low, err1 := strconv.ParseInt(first, 10, 64)
		high, err2 := strconv.ParseInt(last, 10, 64)
		if err1 == nil && err2 == nil && low <= slot && slot <= high {
			return true
		}
	}
	return false
}
