package main

import (
	"testing"
	"time"
)

// mostMessages is what a release may cost, however many wait: one who waits is told. On ZooKeeper the first release is
// a message to each who has looked since the line changed for the last time, too: all, where they came at once.
var mostMessages = map[string]float64{"redis": 1, "zookeeper": 2}

// A small cluster, whole: every phase comes to its end, no two writers are ever inside at once and tokens grow (take says so),
// and a release wakes one.
func TestSimulation(t *testing.T) {
	for _, kind := range []string{"redis", "zookeeper"} {
		t.Run(kind, func(t *testing.T) {
			s, err := startServer(t, kind)
			if err != nil {
				t.Fatal(err)
			}
			f, err := measure(t.Context(), s, plan{sessions: 20, span: 500 * time.Millisecond, ttl: 15 * time.Second, each: 5})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("\n%s", table([]figures{f}))
			if f.alone.grants < 1 || f.shared.grants < 1 || f.shared.least == 0 {
				t.Errorf("not everybody got locks: %+v", f)
			}
			if most := mostMessages[kind]; f.turn.messages < 0.9 || f.turn.messages > most+0.2 {
				t.Errorf("%.3f messages from the server for a release, want 1 to %v", f.turn.messages, most)
			}
		})
	}
}

func TestUnknownServer(t *testing.T) {
	if _, err := startServer(t, "etcd"); err == nil {
		t.Error("no error for a server that there is not")
	}
}
