package testserver

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
)

// crossings are the ways between the members of an ensemble: a SOCKS proxy for each member.
type crossings struct {
	listeners [Members]net.Listener
	work      sync.WaitGroup

	mu      sync.Mutex
	members map[int]int // by port
	apart   [Members]bool
	changed chan struct{} // closed when apart or closed changes
	conns   map[*crossing]bool
	closed  bool
}

// crossing is a connection of one member to another.
type crossing struct {
	from, to  int
	near, far net.Conn
}

// newCrossings ends with the test.
func newCrossings(t testing.TB) *crossings {
	t.Helper()
	c := &crossings{members: map[int]int{}, changed: make(chan struct{}), conns: map[*crossing]bool{}}
	t.Cleanup(c.close)
	for i := range c.listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c.listeners[i] = l
		c.work.Go(func() { c.accept(i) })
	}
	return c
}

func (c *crossings) addr(i int) string { return c.listeners[i].Addr().String() }

// belongs says whose port it is.
func (c *crossings) belongs(port, member int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[port] = member
}

func (c *crossings) cut(i int, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apart[i] = true
	c.tell()
	for x := range c.conns {
		if reset && (x.from == i || x.to == i) {
			x.close()
		}
	}
}

func (c *crossings) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apart = [Members]bool{}
	c.tell()
}

func (c *crossings) close() {
	c.mu.Lock()
	c.closed = true
	c.tell()
	for x := range c.conns {
		x.close()
	}
	c.mu.Unlock()
	for _, l := range c.listeners {
		if l != nil {
			_ = l.Close()
		}
	}
	c.work.Wait()
}

// tell wakes those who wait for a change; c.mu is held.
func (c *crossings) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *crossings) accept(from int) {
	for {
		near, err := c.listeners[from].Accept()
		if err != nil {
			return // closed
		}
		c.work.Go(func() { c.serve(from, near) })
	}
}

// serve carries one connection.
func (c *crossings) serve(from int, near net.Conn) {
	x := &crossing{from: from, to: from, near: near}
	if !c.enter(x) {
		_ = near.Close()
		return
	}
	defer c.leave(x)
	port, err := socksRequest(near)
	if err != nil {
		return
	}
	c.mu.Lock()
	to, known := c.members[port]
	x.to = to
	c.mu.Unlock()
	if !known || !c.pass(x) {
		return
	}
	far, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return
	}
	c.mu.Lock()
	x.far = far
	c.mu.Unlock()
	if _, err := near.Write(socksDone); err != nil {
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { c.pump(x, near, far) })
	pumps.Go(func() { c.pump(x, far, near) })
	pumps.Wait()
}

// enter makes a connection known; false at the end.
func (c *crossings) enter(x *crossing) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[x] = true
	return !c.closed
}

func (c *crossings) leave(x *crossing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, x)
	x.close()
}

// close closes both halves; crossings.mu is held.
func (x *crossing) close() {
	_ = x.near.Close()
	if x.far != nil {
		_ = x.far.Close()
	}
}

// pass waits while the two are apart; false at the end.
func (c *crossings) pass(x *crossing) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && (c.apart[x.from] || c.apart[x.to]) {
		changed := c.changed
		c.mu.Unlock()
		<-changed
		c.mu.Lock()
	}
	return !c.closed
}

// pump carries what comes, and the end of it, when it may pass.
func (c *crossings) pump(x *crossing, from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !c.pass(x) {
			break
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
	_ = from.Close()
	_ = to.Close()
}

var errSOCKS = errors.New("not a SOCKS 5 request to connect to an IPv4 address")

// socksDone is the answer of a proxy that has connected (RFC 1928).
var socksDone = []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}

// socksRequest reads what a client of a SOCKS 5 proxy sends first, and returns the port that it wants to connect to. All
// members are on one machine.
func socksRequest(c net.Conn) (port int, err error) {
	head := make([]byte, 2) // version, number of methods
	if _, err := io.ReadFull(c, head); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, make([]byte, head[1])); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte{5, 0}); err != nil { // no password
		return 0, err
	}
	request := make([]byte, 4+4+2) // version, command, reserved, address type; address; port
	if _, err := io.ReadFull(c, request); err != nil {
		return 0, err
	}
	if head[0] != 5 || request[1] != 1 || request[3] != 1 {
		return 0, errSOCKS
	}
	return int(binary.BigEndian.Uint16(request[8:])), nil
}
