package config

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOnLost(t *testing.T) {
	for text, want := range map[string]OnLost{
		"eio":                       {},
		"TERM":                      {Signal: syscall.SIGTERM},
		"KILL":                      {Signal: syscall.SIGKILL},
		"TERM then KILL after 1s":   {syscall.SIGTERM, time.Second},
		"INT then KILL after 1.5s":  {syscall.SIGINT, 1500 * time.Millisecond},
		"USR1 then KILL after 10ms": {syscall.SIGUSR1, 10 * time.Millisecond},
	} {
		c, err := Parse("x.yml", []byte("on_lost: "+text+"\npolicies: [{names: a, lock_on_open: never}, {names: b, on_lost: HUP}]\nbackends: [{type: file}]"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if c.Policy.OnLost != want || c.For("a").OnLost != want || c.For("b").OnLost != (OnLost{Signal: syscall.SIGHUP}) {
			t.Errorf("%s: %+v", text, c)
		}
		if got := want.String(); got != text {
			t.Errorf("String of %q is %q", text, got)
		}
	}
}

func TestOnLostRefused(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"on_lost: term", `x.yml:1: on_lost: "term" is not known; write eio, a signal (TERM, ABRT,`},
		{"on_lost: STOP", `"STOP" is not known`},
		{"on_lost: KILL then KILL after 1s", "is not known"},
		{"on_lost: TERM then KILL after 0s", "is not known"},
		{"on_lost: TERM then KILL after soon", "is not known"},
		{"on_lost: [TERM]", "on_lost: is a list"},
		{"on_lost: TERM then KILL after 3s", "x.yml:1: on_lost: 3s is too long; with session_ttl 15s the KILL must come within 1.5s, before another node can get the lock; or set session_ttl to 30s or more"},
		{"policies:\n- {names: a, on_lost: INT then KILL after 301ms}\nsession_ttl: 3s", "x.yml:2: policies[0].on_lost: 301ms is too long; with session_ttl 3s the KILL must come within 300ms, before another node can get the lock; or set session_ttl to 4s or more"},
		{"on_lost: TERM then KILL after 1h", "or set session_ttl"},
	} {
		_, err := Parse("x.yml", []byte(test.in+"\nbackends: [{type: file}]"))
		wayOut := !strings.Contains(test.in, "1h")
		if err == nil || strings.Contains(err.Error(), test.want) != wayOut {
			t.Errorf("%s: %v", test.in, err)
		}
	}
	// What -o says of the one counts for the other.
	text := []byte("on_lost: TERM then KILL after 3s\nbackends: [{type: file}]")
	if _, err := Parse("x.yml", text, Option{"session_ttl", "30s"}); err != nil {
		t.Error(err)
	}
	if _, err := Parse("x.yml", text, Option{"on_lost", "TERM then KILL after 1s"}); err != nil {
		t.Error(err)
	}
	if _, err := Parse("x.yml", text, Option{"session_ttl", "30s"}, Option{"on_lost", "TERM then KILL after 3001ms"}); err == nil || !strings.HasPrefix(err.Error(), "-o: on_lost: 3.001s is too long;") {
		t.Error(err)
	}
}

// TestTimesOnLost: noticing, and what may come after it, fit into the margin that every engine
// keeps (package lease: a fifth of three quarters of the TTL at least), and leave time to find the processes.
func TestTimesOnLost(t *testing.T) {
	for ttl := minTTL; ttl <= maxTTL; ttl += time.Second {
		margin := ttl * 3 / 4 / 5
		if rest := margin - TimeOnLost(ttl) - GraceOnLost(ttl); rest < ttl/61 {
			t.Errorf("session_ttl %v: %v are left", ttl, rest)
		}
	}
}
