package zookeeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
)

// answer is one as the server sends it.
func answer(xid int32, zxid int64, rest int) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(answerMin+rest))
	p = binary.BigEndian.AppendUint32(p, uint32(xid))
	p = binary.BigEndian.AppendUint64(p, uint64(zxid))
	return append(p, bytes.Repeat([]byte{0xee}, 4+rest)...)
}

// The library sees no zxid in an answer, the link has that of the last one, and all else passes as it was, in whatever pieces it comes.
func TestWireReads(t *testing.T) {
	hello := binary.BigEndian.AppendUint32(nil, 37)
	hello = append(hello, 0, 0, 0, 0, 0, 0, 0x27, 0x10) // 10 s
	hello = binary.BigEndian.AppendUint64(hello, 0x77)
	hello = append(hello, bytes.Repeat([]byte{0xdd}, 4+16+1)...)
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(1, seed))
		sent, want := bytes.Clone(hello), bytes.Clone(hello)
		seen := int64(0)
		for range rng.IntN(8) {
			xid, zxid, rest := int32(rng.IntN(6)-2), rng.Int64N(1<<40)-1, rng.IntN(40)
			sent, want = append(sent, answer(xid, zxid, rest)...), append(want, answer(xid, 0, rest)...)
			if xid >= 0 && zxid > 0 {
				seen = zxid
			}
		}
		l := &link{}
		w := &wire{Conn: &pieces{rng: rng, data: sent}, link: l}
		// As the library does: the length, and then the rest.
		var got bytes.Buffer
		for {
			head := make([]byte, 4)
			if _, err := io.ReadFull(w, head); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			body := make([]byte, binary.BigEndian.Uint32(head))
			if _, err := io.ReadFull(w, body); err != nil {
				t.Fatal(err)
			}
			got.Write(head)
			got.Write(body)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("seed %d: read\n%x, want\n%x", seed, got.Bytes(), want)
		}
		if l.seen.Load() != seen || l.session.Load() != 0x77 || l.ttl.Load() != int64(10*time.Second) {
			t.Fatalf("seed %d: seen %d, session %x, time-out %v; want %d, 77, 10s", seed, l.seen.Load(), l.session.Load(), time.Duration(l.ttl.Load()), seen)
		}
	}
}

// pieces gives its data in pieces of random length, and takes what is written.
type pieces struct {
	net.Conn
	rng     *rand.Rand
	data    []byte
	written [][]byte
}

func (c *pieces) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+c.rng.IntN(20))], c.data)
	c.data = c.data[n:]
	return n, nil
}

func (c *pieces) Write(p []byte) (int, error) {
	c.written = append(c.written, bytes.Clone(p))
	return len(p), nil
}

// What names a zxid gets the one that was seen before the connection, whatever has been seen since; the rest is left alone.
func TestWireWrites(t *testing.T) {
	request := func(op uint32) []byte {
		p := binary.BigEndian.AppendUint32(nil, 32)
		p = binary.BigEndian.AppendUint32(p, 5)
		p = binary.BigEndian.AppendUint32(p, op)
		return append(p, bytes.Repeat([]byte{1}, 24)...)
	}
	c, l := &pieces{}, &link{}
	l.seen.Store(99)
	w := &wire{Conn: c, link: l, since: 42}
	connect, watches, other, ping := request(opSetWatches), request(opSetWatches), request(4), make([]byte, 12)
	for _, p := range [][]byte{connect, other, watches, watches, ping} {
		before := bytes.Clone(p)
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		if !bytes.Equal(p, before) {
			t.Error("Write changed what it was given")
		}
	}
	for i, want := range [][]byte{withZxid(connect, connectZxid, 42), other, withZxid(watches, watchesZxid, 42), withZxid(watches, watchesZxid, 42), ping} {
		if !bytes.Equal(c.written[i], want) {
			t.Errorf("write %d: %x, want %x", i, c.written[i], want)
		}
	}
}

// By hand: go test -race -run TestFaults/reconnects ./backends/zookeeper -args -reconnects 20000
var reconnects = flag.Int("reconnects", 150, "how often TestFaults/reconnects cuts a connection")

// testReconnects: no watch is lost, and with -race no race is found in the library, when the connection breaks again and again
// and requests come first on the new one.
func testReconnects(t *testing.T, r *rig) {
	p := newProxy(t, r.Addr())
	fired := make(chan string, 1000)
	l, err := newLink(r.config(p.addr()), 30*time.Second, 12*time.Second, discard, nil, func(e zk.Event) { fired <- e.Path })
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := l.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for round := range *reconnects {
		path := fmt.Sprint("/watched", round)
		if _, err := r.conn.Create(path, nil, zk.FlagEphemeral, zk.WorldACL(zk.PermAll)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		eventually(t, "a watch", func() bool {
			_, _, _, err := l.conn.GetW(path)
			return err == nil
		})
		ctx, stop := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		for range 4 {
			busy.Go(func() {
				for ctx.Err() == nil {
					if _, _, err := l.conn.Exists("/"); err != nil {
						pause(ctx, time.Millisecond)
					}
				}
			})
		}
		p.cut()
		if err := r.conn.Delete(path, -1); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for limit := time.After(20 * time.Second); path != ""; {
			select {
			case got := <-fired:
				if got == path {
					path = ""
				}
			case <-limit:
				t.Errorf("round %d: the watch on %s was lost", round, path)
				path = ""
			}
		}
		stop()
		busy.Wait()
		if t.Failed() {
			return
		}
	}
}
