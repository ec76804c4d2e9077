package faults

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// The ways to the server do what they are said to do.
func TestProxy(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() { // ends with the listener
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }() // ends with the connection
		}
	}()
	p := newProxy(t, server.Addr().String())
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ask := func(c net.Conn, text string, limit time.Duration) error {
		_, err := c.Write([]byte(text))
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(limit))
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return err
	}
	const short = 100 * time.Millisecond
	for _, mode := range []network{holds, swallows, refuses} {
		old := dial()
		if err := ask(old, "a", patience); err != nil {
			t.Fatalf("no answer where all passes: %v", err)
		}
		p.set(mode)
		var late net.Conn
		for late == nil { // one that is reset at once may be so before connect(2) returns
			c, err := net.Dial("tcp", p.addr())
			if err != nil && !(mode == refuses && errors.Is(err, syscall.ECONNRESET)) {
				t.Fatal(err)
			}
			if err == nil {
				t.Cleanup(func() { c.Close() })
				late = c
			}
		}
		for name, c := range map[string]net.Conn{"an old": old, "a new": late} {
			silent := errors.Is(ask(c, "b", short), os.ErrDeadlineExceeded)
			if silent != (mode != refuses) {
				t.Errorf("mode %d: %s connection is silent: %v", mode, name, silent)
			}
		}
		p.set(passes)
		for name, c := range map[string]net.Conn{"the old": old, "the new": late} {
			if answers := ask(c, "c", patience) == nil; answers != (mode == holds) {
				t.Errorf("after mode %d, %s connection answers: %v", mode, name, answers)
			}
		}
		if err := ask(dial(), "d", patience); err != nil {
			t.Errorf("after mode %d, a connection does not answer: %v", mode, err)
		}
	}
}
