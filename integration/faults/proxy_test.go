package faults

import (
	"net"
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
)

// proxy is a node's way to the server.
type proxy struct {
	listener net.Listener
	to       string
	done     sync.WaitGroup

	mu      sync.Mutex
	mode    network
	changed chan struct{} // closed at the next change of mode
	conns   map[*link]struct{}
	closed  bool
	sent    int64 // when bytes were last passed on to the server
}

// link is a connection and its other half. gap: bytes of it were swallowed.
type link struct {
	halves [2]net.Conn
	gap    bool
}

// newProxy ends with the test.
func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: to, changed: make(chan struct{}), conns: map[*link]struct{}{}}
	p.done.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.set(refuses)
	p.listener.Close()
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

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.done.Go(func() { p.serve(c) })
	}
}

// serve carries one connection, once the network lets it through.
func (p *proxy) serve(near net.Conn) {
	l := &link{halves: [2]net.Conn{near, near}}
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
	far, err := net.DialTimeout("tcp", p.to, 5*time.Second)
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
	return p.mode == passes && !l.gap
}

// lastSent is when bytes from the node were last passed on to the server.
func (p *proxy) lastSent() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

func (p *proxy) pump(l *link, from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !p.pass(l) {
			break
		}
		if from == l.halves[0] && n > 0 {
			p.mu.Lock()
			p.sent = now()
			p.mu.Unlock()
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
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
