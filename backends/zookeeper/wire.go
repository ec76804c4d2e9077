package zookeeper

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"time"
)

// wire is the connection to one server as the library uses it.
//
// It keeps account of the last transaction that the client has seen (its zxid), in the library's place, which has it
// wrong: after a reconnect the library reads the number, to have its watches set again from there, while
// it may already be writing that of an answer from the new connection. That is a data race,
// and where the answer comes first, the server is not asked for what happened before it: a watch that
// should have fired never does. So the library is shown answers without their zxid, which it
// then leaves alone, and what it writes is given the right one: for the connect request what was seen
// last, for the watches what had been seen when the old connection ended. A watch that was set
// since then may fire once too often. That costs one more look.
type wire struct {
	net.Conn
	link  *link
	since int64 // the zxid seen before this connection

	greeted bool   // of the writer: the connect request has been sent
	hello   []byte // of the reader: the handshake's answer, until it is complete
	ready   bool   // and then this
	head    []byte // the current answer's head, until it is complete
	rest    int    // what of the current answer comes after its head
}

// Requests as the library sends them, one a Write: length, xid, opcode, and then, of this one, the zxid.
// Of the connect request: length, protocol version, zxid.
const (
	opSetWatches = 101
	watchesZxid  = 12
	connectZxid  = 8
)

func (w *wire) Write(p []byte) (int, error) {
	switch {
	case !w.greeted && len(p) >= connectZxid+8:
		w.greeted = true
		p = withZxid(p, connectZxid, w.since)
	case w.greeted && len(p) >= watchesZxid+8 && binary.BigEndian.Uint32(p[8:]) == opSetWatches:
		p = withZxid(p, watchesZxid, w.since)
	}
	return w.Conn.Write(p)
}

// withZxid is a copy: a Write leaves alone what it is given.
func withZxid(p []byte, at int, zxid int64) []byte {
	p = slices.Clone(p)
	binary.BigEndian.PutUint64(p[at:], uint64(zxid))
	return p
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if w.ready {
		if err := w.look(p[:n]); err != nil {
			w.link.failure.Store(failure{err})
			return 0, err
		}
		return n, err
	}
	if err != nil {
		w.link.failure.Store(failure{fmt.Errorf("no answer to the connect request: %w", err)})
	}
	w.hello = append(w.hello, p[:n]...) // the library reads no further than to its end
	if err := w.greet(); err != nil {
		w.link.failure.Store(failure{err})
		return 0, err
	}
	return n, err
}

// The answer to the connect request: its length, then protocol version,
// time-out in milliseconds and session id, then what is of no interest here.
const handshake = 4 + 4 + 4 + 8

// greet reads the handshake. The library trusts the length that comes first,
// whoever sent it.
func (w *wire) greet() error {
	if len(w.hello) < 4 {
		return nil
	}
	size := binary.BigEndian.Uint32(w.hello)
	if size < handshake-4 || size > 1024 {
		return errForeign
	}
	if len(w.hello) < 4+int(size) {
		return nil
	}
	w.ready = true
	if id := int64(binary.BigEndian.Uint64(w.hello[12:])); id != 0 { // 0: expired
		w.link.ttl.Store(int64(time.Duration(binary.BigEndian.Uint32(w.hello[8:])) * time.Millisecond))
		w.link.session.Store(id)
	}
	w.hello = nil
	return nil
}

// An answer: its length, the request's xid (negative: a ping's, or an event), zxid, error, and what was asked for.
const (
	answerXid  = 4
	answerZxid = 8
	answerHead = answerZxid + 8
	answerMin  = 4 + 8 + 4 // that its length counts
)

// look follows the answers as they pass, in whatever pieces, notes their zxid and takes it out of p.
func (w *wire) look(p []byte) error {
	for len(p) > 0 {
		if w.rest > 0 {
			n := min(w.rest, len(p))
			w.rest -= n
			p = p[n:]
			continue
		}
		n := min(answerHead-len(w.head), len(p))
		at := len(w.head)
		w.head = append(w.head, p[:n]...)
		clear(p[min(max(answerZxid-at, 0), n):n])
		p = p[n:]
		if len(w.head) < answerHead {
			return nil
		}
		size := binary.BigEndian.Uint32(w.head)
		if size < answerMin {
			return errForeign
		}
		xid, zxid := int32(binary.BigEndian.Uint32(w.head[answerXid:])), int64(binary.BigEndian.Uint64(w.head[answerZxid:]))
		if xid >= 0 && zxid > 0 {
			w.link.seen.Store(zxid)
		}
		w.rest = 4 + int(size) - answerHead
		w.head = w.head[:0]
	}
	return nil
}

// SetReadDeadline shortens what the library allows, which is ten times the session's time-out for the handshake.
func (w *wire) SetReadDeadline(t time.Time) error {
	limit := w.link.quiet
	if !w.ready {
		limit = w.link.cfg.Timeout
	}
	if latest := time.Now().Add(limit); !t.IsZero() && t.After(latest) {
		t = latest
	}
	return w.Conn.SetReadDeadline(t)
}
