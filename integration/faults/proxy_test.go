package faults

import (
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// network is what a node's way to the server does.
type network int

const (
	passes   network = iota
	refuses          // connections are reset, new ones too
	swallows         // connections stay and nothing arrives, either way; in the end they are reset
	holds            // nothing arrives either way until the end; then all of it does
	late             // each answer comes late, but in time for who waits for it
	slow             // what arrives comes some time late, either way, so that messages of different nodes cross
)

// proxy is a node's way to the server, or to all of several.
type proxy struct {
	listeners []net.Listener // one for each server
	done      sync.WaitGroup

	mu      sync.Mutex
	names   []string // what servers say of where servers are, and in its place how to reach them; in turn
	mode    network
	changed chan struct{} // closed at the next change of mode
	conns   map[*link]struct{}
	closed  bool
	sent    int64 // when bytes were last passed on to the server
}

// link is a connection and its other half. gap: bytes of it were swallowed.
type link struct {
	server int
	halves [2]net.Conn
	gap    bool
}

// newProxy ends with the test.
func newProxy(t testing.TB, servers ...string) *proxy {
	t.Helper()
	p := &proxy{changed: make(chan struct{}), conns: map[*link]struct{}{}}
	t.Cleanup(p.close)
	for i, to := range servers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.listeners = append(p.listeners, l)
		p.done.Go(func() { p.accept(l, i, to) })
	}
	return p
}

// addr is how to reach the first server.
func (p *proxy) addr() string { return p.listeners[0].Addr().String() }

// addrs is how to reach each.
func (p *proxy) addrs() []string {
	var all []string
	for _, l := range p.listeners {
		all = append(all, l.Addr().String())
	}
	return all
}

// translate has the node hear of itself as the way to these servers, as behind a translation of network addresses. All
// ports have the same number of digits.
func (p *proxy) translate(servers []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, near := range p.addrs() {
		_, real, _ := net.SplitHostPort(servers[i])
		_, mine, _ := net.SplitHostPort(near)
		p.names = append(p.names, "\r\n"+real+"\r\n", "\r\n"+mine+"\r\n") // as Redis sends them
	}
}

// translated is what the node hears in place of what a server says.
func (p *proxy) translated(text []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names == nil {
		return text
	}
	return []byte(strings.NewReplacer(p.names...).Replace(string(text)))
}

// using are the servers to which there are connections, each once.
func (p *proxy) using() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []int
	for l := range p.conns {
		all = append(all, l.server)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.set(refuses)
	for _, l := range p.listeners {
		l.Close()
	}
	p.done.Wait()
}

// set changes what the way does, from now on.
func (p *proxy) set(mode network) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = mode
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.conns {
		if mode == refuses || mode == passes && l.gap {
			l.reset()
		}
	}
}

func (l *link) reset() {
	for _, c := range l.halves {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		c.Close()
	}
}

func (p *proxy) accept(listener net.Listener, server int, to string) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return // closed
		}
		p.done.Go(func() { p.serve(c, server, to) })
	}
}

// serve carries one connection, once the network lets it through.
func (p *proxy) serve(near net.Conn, server int, to string) {
	l := &link{server: server, halves: [2]net.Conn{near, near}}
	p.mu.Lock()
	if p.mode == refuses || p.closed {
		p.mu.Unlock()
		l.reset()
		return
	}
	p.conns[l] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, l)
		l.reset()
	}()
	if !p.pass(l) {
		return
	}
	far, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return
	}
	p.mu.Lock()
	l.halves[1] = far
	gone := p.closed || p.mode == refuses
	p.mu.Unlock()
	if gone {
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(l, near, far) })
	pumps.Go(func() { p.pump(l, far, near) })
	pumps.Wait()
}

// pass waits while nothing may arrive; false where what was to is gone.
func (p *proxy) pass(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.mode == holds || p.mode == swallows {
		if p.mode == swallows {
			l.gap = true
		}
		changed := p.changed
		p.mu.Unlock()
		<-changed
		p.mu.Lock()
	}
	return (p.mode == passes || p.mode == late || p.mode == slow) && !l.gap
}

// lateness is how late an answer is: just less than an attempt to renew the lease waits for it.
const lateness = ttl / 6

// slowness is how late at the most what arrives on a slow way is.
const slowness = 50 * time.Millisecond

// delay is how long to keep back what has come; answer: from the server.
func (p *proxy) delay(answer bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.mode == late && answer:
		return lateness
	case p.mode == slow:
		return rand.N(slowness)
	}
	return 0
}

func (p *proxy) pump(l *link, from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		time.Sleep(p.delay(from == l.halves[1]))
		if !p.pass(l) {
			break
		}
		if from == l.halves[0] && n > 0 {
			p.mu.Lock()
			p.sent = now()
			p.mu.Unlock()
		}
		if n > 0 {
			text := buf[:n]
			if from == l.halves[1] {
				text = p.translated(text)
			}
			if _, err := to.Write(text); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	from.Close()
	to.Close()
}
