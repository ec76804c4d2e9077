package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

// TestOpenRefuses: each server that can't be used is named, with the way out
// and without a secret.
func TestOpenRefuses(t *testing.T) {
	const secret = "s3cret-pass"
	plain := testserver.Redis(t)
	locked := testserver.Redis(t, "--requirepass", secret)
	replica := testserver.Redis(t, "--replicaof", "127.0.0.1", portOf(t, plain.Addr()))
	cluster := testserver.Redis(t, "--cluster-enabled", "yes")
	denied := testserver.Redis(t, "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-eval", "-evalsha")
	foreignKeys := testserver.Redis(t, "--user", "default", "on", "nopass", "~other:*", "&*", "+@all")
	for _, row := range []struct {
		what, addr, password string
		kind                 error
		says                 string
	}{
		{"wrong password", locked.Addr(), "wr0ng-pass", backends.ErrRefused, "check username and password"},
		{"no password", locked.Addr(), "", backends.ErrRefused, "check username and password"},
		{"replica", replica.Addr(), "", backends.ErrRefused, "point lockfs at the master"},
		{"cluster", cluster.Addr(), "", backends.ErrForeign, "cluster_addrs"},
		{"no scripts", denied.Addr(), "", backends.ErrRefused, "the user needs"},
		{"no keys", foreignKeys.Addr(), "", backends.ErrRefused, "the user needs"},
		{"nobody there", "127.0.0.1:1", "", backends.ErrUnavailable, "refused"},
		{"not Redis", speaks(t, "SSH-2.0-OpenSSH_9.2\r\n"), "", backends.ErrForeign, "Redis"},
		{"a web server", speaks(t, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "", backends.ErrForeign, "Redis"},
		{"silent", speaks(t, ""), "", backends.ErrUnavailable, ""},
		{"no such host", "no-such-host.invalid:6379", "", backends.ErrUnavailable, "no-such-host.invalid"},
	} {
		t.Run(row.what, func(t *testing.T) {
			start := time.Now()
			b, err := Open(t.Context(), config.Redis{Network: "tcp", Address: row.addr, Password: row.password, Timeout: time.Second}, "test", nil)
			if err == nil {
				_ = b.Close()
			}
			if !errors.Is(err, row.kind) {
				t.Fatalf("Open: %v, want one that wraps %q", err, row.kind)
			}
			if !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), row.addr) || strings.Contains(err.Error(), "wr0ng-pass") {
				t.Errorf("message %q: want the address and %q, no password", err, row.says)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("one attempt with a time-out of 1 s took %v", took)
			}
			t.Log(err)
		})
	}
	b, err := Open(t.Context(), config.Redis{Network: "tcp", Address: locked.Addr(), DB: 3, Password: secret, Timeout: time.Second}, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := openOn(t, b, time.Minute)
	drop(t, s, "x", acquire(t, s, "x", writing))
	if got, want := b.String(), "redis at "+locked.Addr()+", database 3"; got != want || b.Local() {
		t.Errorf("String %q, want %q; Local %v", got, want, b.Local())
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestOpenCancelled: Open comes back when its context ends.
func TestOpenCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Open(ctx, config.Redis{Network: "tcp", Address: speaks(t, ""), Timeout: time.Second}, "test", nil)
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 500*time.Millisecond {
		t.Errorf("Open returned %v after %v", err, took)
	}
}

func TestPrefixesAreApart(t *testing.T) {
	seen := map[string]string{}
	for _, cluster := range []string{"a", "a}:g:x", "a}", "{a}", "a%7D", "a%", "a%25", ""} {
		p := prefix(cluster)
		if other, ok := seen[p]; ok {
			t.Errorf("clusters %q and %q share the prefix %q", cluster, other, p)
		}
		seen[p] = cluster
		if strings.Count(p, "{") != 1 || strings.Count(p, "}") != 1 {
			t.Errorf("prefix %q of %q has not one hash tag", p, cluster)
		}
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	const secret = "s3cret"
	echo := fmt.Errorf("%w: unknown command AUTH s3cret", backends.ErrForeign)
	if got := withoutSecret(echo, secret); !errors.Is(got, backends.ErrForeign) || strings.Contains(got.Error(), secret) {
		t.Errorf("an error that has the password in it becomes %v", got)
	}
	if got := withoutSecret(io.EOF, secret); got != io.EOF {
		t.Errorf("another error becomes %v", got)
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"6.2.0": true, "7.0.15": true, "8": false, "10.0.1": true, "6.0.16": false, "5.0.7": false, "": false, "x.y": false,
	} {
		if got := newEnough(version); got != want {
			t.Errorf("newEnough(%q) = %v", version, got)
		}
	}
}

func portOf(t *testing.T, addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// speaks is a server that greets and then only listens.
func speaks(t *testing.T, greeting string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(greeting))
			go func() { // until the client closes
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}
