// Command sim drives many sessions, without mounts, against one server through the contract of
// package backends: what a cluster of so many nodes would ask of it.
//
//	go run ./integration/sim -sessions 1000 -backend redis
//
// It starts a Redis or a ZooKeeper of its own. One process plays all nodes, each with a connection of its own, so that
// client and server share the machine: the processor time of the server is measured by itself, the rates are what
// both can do together.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"lockfs/integration/report"
)

// plan is what to simulate.
type plan struct {
	sessions int
	span     time.Duration // how long each rate is measured
	ttl      time.Duration
	each     int // locks that each session holds, for the memory
}

func main() {
	p := plan{ttl: 15 * time.Second}
	flag.IntVar(&p.sessions, "sessions", 1000, "how many `nodes`")
	flag.DurationVar(&p.span, "time", 5*time.Second, "how long each rate is measured")
	flag.IntVar(&p.each, "held", 20, "how many locks each session holds, for the memory of a lock")
	backends := flag.String("backend", "redis", "redis, zookeeper or both with a comma")
	docs := flag.String("docs", "", "a `page` to write the table into, between the markers 'sessions'")
	flag.Parse()
	if err := run(p, strings.Split(*backends, ","), *docs); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(p plan, kinds []string, docs string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	machine := report.Machine()
	var all []figures
	for _, kind := range kinds {
		f, err := simulate(ctx, kind, p)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		all = append(all, f)
	}
	text := machine + "\n\n" + table(all)
	fmt.Println(text)
	if docs == "" {
		return nil
	}
	return report.Replace(docs, "sessions", text)
}

// simulate is one server's turn.
func simulate(ctx context.Context, kind string, p plan) (f figures, err error) {
	h := &host{}
	defer h.end()
	s, err := startServer(h, kind)
	if err != nil {
		return f, err
	}
	return measure(ctx, s, p)
}

func table(all []figures) string {
	t := report.NewTable(append([]string{"what"}, kindsOf(all)...)...)
	row := func(what string, cell func(figures) string) {
		cells := []any{what}
		for _, f := range all {
			cells = append(cells, cell(f))
		}
		t.Add(cells...)
	}
	row("sessions, each with a connection of its own", func(f figures) string { return report.Thousands(float64(f.sessions)) })
	row("all opened in", func(f figures) string { return fmt.Sprintf("%.1f s", f.opened.Seconds()) })
	row("idle: requests a second (heartbeats)", func(f figures) string { return report.Thousands(f.idle.requests) })
	row("idle: server's processor, parts of a core", func(f figures) string { return percent(f.idle.processor) })
	row("each a name of its own: grants a second", func(f figures) string { return report.Thousands(f.alone.grants) })
	row("… server's processor", func(f figures) string { return percent(f.alone.processor) })
	row("… server's processor for a lock and an unlock", func(f figures) string { return f.alone.each() })
	row("… requests to the server for a lock and an unlock", func(f figures) string { return f.alone.asked() })
	row("ten to a name: grants a second", func(f figures) string { return report.Thousands(f.shared.grants) })
	row("… server's processor for a lock and an unlock", func(f figures) string { return f.shared.each() })
	row("… requests to the server for a lock and an unlock", func(f figures) string { return f.shared.asked() })
	row("… least and most served session", func(f figures) string { return fmt.Sprintf("%d, %d", f.shared.least, f.shared.most) })
	row("all wait for one name: grants a second as they are served in turn", func(f figures) string { return report.Thousands(f.turn.grants) })
	row("… messages from the server for a release", func(f figures) string { return fmt.Sprintf("%.3f", f.turn.messages) })
	row("… requests to the server for a release", func(f figures) string { return f.turn.asked() })
	row("memory of a lock that is held, on the server", func(f figures) string { return f.memory + " bytes" })
	row("locks for that", func(f figures) string { return report.Thousands(float64(f.locks)) })
	return t.String()
}

func kindsOf(all []figures) (kinds []string) {
	for _, f := range all {
		kinds = append(kinds, map[string]string{"redis": "Redis", "zookeeper": "ZooKeeper"}[f.kind])
	}
	return kinds
}

func percent(f float64) string { return fmt.Sprintf("%.1f %%", 100*f) }
