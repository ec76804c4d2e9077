package file

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"lockfs/backends"
)

// Kinds of messages.
const (
	kindGrant  = "grant"  // your entry ID is granted
	kindYield  = "yield"  // your entry ID was taken out, it yields
	kindWanted = "wanted" // claims on Name with stamps below Seq are wanted
)

// message is one packet between sessions.
type message struct {
	Kind       string
	Name       []byte `json:",omitempty"` // base64: a name may hold any byte
	ID         string `json:",omitempty"`
	Token, Seq uint64 `json:",omitempty"`
	Contended  bool   `json:",omitempty"`
}

// maxPacket is more than any message takes: a name has at most 1,024 bytes.
const maxPacket = 8 << 10

// line is a connection to another session: messages go out, and its end
// tells that the other one died.
type line struct {
	s      *session
	peer   string
	kick   chan struct{} // of 1: out has something
	mu     sync.Mutex
	out    []message
	wanted map[string]int // index in out of the message for a name, to merge
}

// tell sends a message to a session, this one included. It does not block.
func (s *session) tell(id string, m message) {
	if id != s.id {
		if l := s.lineTo(id); l != nil {
			l.push(m)
		}
		return
	}
	s.handle(m)
}

// handle does what a message says.
func (s *session) handle(m message) {
	if m.Kind == kindWanted {
		s.inbox.put(string(m.Name), m.Seq)
		return
	}
	s.decide(m)
}

// lineTo returns the line to a session, made if need be; nil when this session is over.
func (s *session) lineTo(id string) *line {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[id]
	if l == nil && !s.over {
		l = &line{s: s, peer: id, kick: make(chan struct{}, 1), wanted: map[string]int{}}
		s.lines[id] = l
		s.owned.Go(l.run)
	}
	return l
}

func (l *line) push(m message) {
	l.mu.Lock()
	if i, ok := l.wanted[string(m.Name)]; ok && m.Kind == kindWanted {
		l.out[i].Seq = max(l.out[i].Seq, m.Seq)
	} else {
		if m.Kind == kindWanted {
			l.wanted[string(m.Name)] = len(l.out)
		}
		l.out = append(l.out, m)
	}
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *line) take() []message {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.out
	l.out = nil
	clear(l.wanted)
	return out
}

// run keeps the line until the peer is dead or this session over.
func (l *line) run() {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: l.s.a.socketPath(l.peer), Net: "unixpacket"})
		if err == nil {
			l.talk(conn)
			wait = time.Millisecond
		}
		if l.s.life.Err() != nil {
			return
		}
		// No socket, or it ended: the peer is dead or about to be, for the kernel
		// closes a process's descriptors one by one. Or its backlog is full, or it is
		// out of descriptors; then it lives, and the line is made again.
		if !alive(l.s.a.sessionPath(l.peer)) {
			break
		}
		if !l.s.pause(l.s.life, wait) {
			return
		}
	}
	l.s.mu.Lock()
	delete(l.s.lines, l.peer)
	l.s.mu.Unlock()
	l.s.a.bury(l.peer)
	l.s.reexamine()
}

// talk sends what is to be sent until the connection ends.
func (l *line) talk(conn *net.UnixConn) {
	ended := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(ended)
		_, _ = conn.Read(make([]byte, 1)) // the peer sends nothing: this ends with it
	})
	stop := func() { _ = conn.Close() } // ends the reader, and a writer that waits for a stopped peer
	unwatch := context.AfterFunc(l.s.life, stop)
	defer func() {
		unwatch()
		stop()
		reader.Wait()
	}()
	for {
		batch := l.take()
		for i, m := range batch {
			if err := send(conn, m); err != nil {
				l.putBack(batch[i:])
				return
			}
		}
		select {
		case <-l.kick:
		case <-ended:
			return
		case <-l.s.Done():
			return
		}
	}
}

// putBack keeps what could not be sent for the next connection.
func (l *line) putBack(unsent []message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = append(unsent, l.out...)
	clear(l.wanted)
}

func send(conn *net.UnixConn, m message) error {
	packet, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	_, err = conn.Write(packet)
	return err
}

// accept takes the lines of other sessions until this one is over.
func (s *session) accept() {
	for {
		conn, err := s.sock.Accept()
		switch {
		case err == nil:
			s.serve(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			s.log.Warn("can't take another session's connection, trying again", "error", err)
			if !s.pause(s.life, 100*time.Millisecond) {
				return
			}
		}
	}
}

// serve reads a connection in a goroutine of its own.
func (s *session) serve(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		_ = conn.Close()
		return
	}
	s.conns[conn] = struct{}{}
	s.owned.Go(func() {
		s.listen(conn)
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		_ = conn.Close()
	})
}

// listen handles messages until the connection ends.
func (s *session) listen(conn net.Conn) {
	buf := make([]byte, maxPacket)
	for {
		n, err := conn.Read(buf)
		if err != nil || n == 0 {
			return
		}
		var m message
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			s.log.Error("a message from another session makes no sense; are all mounts of the same version?", "error", err)
			continue
		}
		s.handle(m)
	}
}

// nodeOf returns what a session's node is called.
func (a *area) nodeOf(id string) string {
	p, _ := a.presenceOf(id) // it may have just left
	return p.Node
}

// inbox delivers events: it keeps and merges them until they are read.
type inbox struct {
	out  chan backends.Event
	kick chan struct{}
	mu   sync.Mutex
	seqs map[string]uint64
}

func newInbox() *inbox {
	return &inbox{out: make(chan backends.Event), kick: make(chan struct{}, 1), seqs: map[string]uint64{}}
}

func (in *inbox) put(name string, seq uint64) {
	in.mu.Lock()
	in.seqs[name] = max(in.seqs[name], seq)
	in.mu.Unlock()
	select {
	case in.kick <- struct{}{}:
	default:
	}
}

func (in *inbox) take() map[string]uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	seqs := in.seqs
	in.seqs = map[string]uint64{}
	return seqs
}

// run hands events out until ctx ends.
func (in *inbox) run(ctx context.Context) {
	for {
		select {
		case <-in.kick:
		case <-ctx.Done():
			return
		}
		for name, seq := range in.take() {
			select {
			case in.out <- backends.Event{Name: name, Seq: seq}:
			case <-ctx.Done():
				return
			}
		}
	}
}
