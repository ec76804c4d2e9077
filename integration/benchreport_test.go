package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockfs/integration/report"
)

// The page and the picture that the whole benchmark writes.
const (
	benchPage    = "../docs/performance.md"
	benchPicture = "../docs/performance.svg"
	benchPart    = "figures"
)

var titles = map[string]string{"": "floor", "file": "file", "redis": "Redis", "zookeeper": "ZooKeeper"}

func benchMachine() string {
	redis, _, _ := strings.Cut(report.Version("redis-server", "--version"), " sha=")
	return report.Machine() + "; " + redis + ", no persistence; the file back end on /dev/shm; ZooKeeper of Debian's package, one server, log on " + filepath.Clean(os.TempDir())
}

func (b *bench) write(t *testing.T, machine string) {
	t.Helper()
	must(t, report.Replace(benchPage, benchPart, b.text(machine)))
	must(t, os.WriteFile(benchPicture, []byte(report.SVG(b.latencyChart(), b.crowdChart())), 0o644))
}

func (b *bench) text(machine string) string {
	return fmt.Sprintf("%s\n\n### Against the bounds\n\n%s\n### One or two programs, µs\n\n%s\n### Crowds\n\n%s\n### Waiters\n\n%s\n%s\n### Names held\n\n%s",
		machine, b.boundsTable(), b.latencyTable(), b.crowdTable(), b.waitTable(), b.turnTable(), b.namesTable())
}

// bound is a row of the table of bounds.
type bound struct {
	what, kind, bound, measured string
	ok                          bool
}

func (b *bench) boundsTable() string {
	table := report.NewTable("what", "on", "bound", "measured", "")
	for _, r := range b.bounds() {
		verdict := "**over**"
		if r.ok {
			verdict = "ok"
		}
		table.Add(r.what, titles[r.kind], r.bound, r.measured, verdict)
	}
	return table.String()
}

// bounds holds what was measured to where it has to come out, on a quiet machine.
func (b *bench) bounds() []bound {
	var all []bound
	for _, kind := range kinds {
		all = append(all, b.repeatedBound(kind)...)
	}
	all = append(all, b.redisBounds()...)
	for _, f := range b.waits {
		if f.waiters == b.scale.waiters[0] {
			all = append(all, f.bounds()...)
		}
	}
	for _, f := range b.crowds {
		if f.processes == 16 && f.how == "write" {
			all = append(all, f.bounds()...)
		}
	}
	for _, f := range b.turns {
		limit := 200 * time.Millisecond
		all = append(all, bound{fmt.Sprintf("%d waiters on one mount, served in turn", f.waiters), f.kind, "≤ 200 ms", f.String(), f.took <= limit})
	}
	for _, f := range b.names {
		all = append(all, f.bounds()...)
	}
	return all
}

func (b *bench) repeatedBound(kind string) []bound {
	l, trip := b.latency(repeatedRow, kind), b.floors.fuse[kind]
	limit := 2 * trip * 13 / 10
	rows := []bound{{repeatedRow, kind, fmt.Sprintf("≤ 1.3 × 2 FUSE round trips = %s µs", report.Micros(limit)), report.Micros(l.p50) + " µs", l.p50 <= limit}}
	if l.requests >= 0 {
		// A heartbeat can fall into the time.
		rows = append(rows, bound{"requests to the server for it", kind, "0", fmt.Sprintf("%.3f", l.requests), l.requests < 0.01})
	}
	return rows
}

func (b *bench) redisBounds() []bound {
	trip, ping := b.floors.fuse["redis"], b.floors.server["redis"].p50
	first, hand := b.latency(firstRow, "redis"), b.latency(handRow, "redis")
	firstLimit, handLimit := 2*trip+2*ping+30*time.Microsecond, 2*trip+3*ping+60*time.Microsecond
	return []bound{
		{firstRow, "redis", fmt.Sprintf("≤ 2 FUSE + 2 PING + 30 µs = %s µs", report.Micros(firstLimit)), report.Micros(first.p50) + " µs", first.p50 <= firstLimit},
		{handRow, "redis", fmt.Sprintf("≤ 2 FUSE + 3 PING + 60 µs = %s µs", report.Micros(handLimit)), report.Micros(hand.p50) + " µs", hand.p50 <= handLimit},
		{"its p99", "redis", "≤ 5 × p50 = " + report.Micros(5*hand.p50) + " µs", report.Micros(hand.p99) + " µs", hand.p99 <= 5*hand.p50},
	}
}

// heartbeatsOf is how many kinds of heartbeats a mount has: with ZooKeeper the lease is renewed by a write, and the library sends pings.
var heartbeatsOf = map[string]int{"redis": 1, "zookeeper": 2}

func (f waitFigure) bounds() []bound {
	who := fmt.Sprintf("%s waiters over %d mounts, idle for %v: ", report.Thousands(float64(f.waiters)), f.mounts, f.idle)
	if f.came < f.waiters {
		return []bound{{who, f.kind, "all wait", fmt.Sprint(f.came), false}}
	}
	rows := []bound{{who + "busiest daemon", f.kind, "< 1 % of a core", percent(f.processor), f.processor < 0.01}}
	if f.counted {
		// A heartbeat more or less of each kind falls into the time, from each mount.
		rows = append(rows,
			bound{who + "requests besides heartbeats", f.kind, "0", fmt.Sprint(f.requests), f.requests <= heartbeatsOf[f.kind]*f.mounts},
			bound{"messages for a release then", f.kind, "1", fmt.Sprint(f.messages), f.messages <= 1})
	}
	return append(rows, bound{"who gets the lock then", f.kind, "1", fmt.Sprint(f.woken), f.woken == 1})
}

func (f crowdFigure) bounds() []bound {
	who := fmt.Sprintf("crowd of %d over %d mounts, write locks", f.processes, f.mounts)
	return []bound{
		{who, f.kind, "≥ 24,000 locks/s", report.Thousands(f.rate), f.rate >= 24000},
		{"its fairness, least / most", f.kind, "≥ 0.5", f.fairness(), 2*f.least >= f.most},
		{"its violations", f.kind, "0", fmt.Sprint(f.violations), f.violations == 0},
	}
}

func (f namesFigure) bounds() []bound {
	who := report.Thousands(float64(f.names)) + " names held by one mount"
	return []bound{
		{who + ": resident", f.kind, "< 150 MiB", mebi(f.resident), f.resident < 150<<20},
		{who + ": requests while idle", f.kind, fmt.Sprintf("%d as before", f.before), fmt.Sprint(f.after), f.after <= f.before+1},
	}
}

func (b *bench) latencyTable() string {
	table := report.NewTable("what", "on", "p50", "p90", "p99", "× FUSE", "× PING or exists", "requests")
	for _, l := range b.latencies {
		table.Add(l.what, titles[l.kind], report.Micros(l.p50), report.Micros(l.p90), report.Micros(l.p99),
			times(l.p50, b.floors.fuse[l.kind]), times(l.p50, b.serverFloor(l.kind)), l.asked())
	}
	return table.String()
}

func (b *bench) serverFloor(kind string) time.Duration {
	return b.floors.server[kind].p50
}

func times(d, floor time.Duration) string {
	if floor == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", float64(d)/float64(floor))
}

func (l latency) asked() string {
	if l.requests < 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", l.requests)
}

func (b *bench) crowdTable() string {
	table := report.NewTable("locks", "processes", "mounts", "on", "locks/s", "least", "most", "least / most", "violations")
	for _, f := range b.crowds {
		table.Add(f.how, f.processes, f.mounts, titles[f.kind], report.Thousands(f.rate), f.least, f.most, f.fairness(), f.violations)
	}
	return table.String()
}

func (f crowdFigure) fairness() string {
	return fmt.Sprintf("%.2f", float64(f.least)/float64(max(f.most, 1)))
}

func (b *bench) waitTable() string {
	table := report.NewTable("waiters", "mounts", "on", "requests besides heartbeats", "busiest daemon", "release: until the next has it", "who has it then", "messages", "then all in turn")
	for _, f := range b.waits {
		if f.came < f.waiters {
			table.Add(report.Thousands(float64(f.waiters)), f.mounts, titles[f.kind], fmt.Sprintf("only %d waited after %v", f.came, comePatience))
			continue
		}
		asked, messages := "no server", "not counted"
		if f.counted {
			asked, messages = fmt.Sprint(f.requests), fmt.Sprint(f.messages)
		}
		table.Add(report.Thousands(float64(f.waiters)), f.mounts, titles[f.kind], asked, percent(f.processor), report.Micros(f.turn)+" µs", f.woken, messages, f.turns)
	}
	return table.String()
}

func (b *bench) turnTable() string {
	table := report.NewTable("waiters on one mount", "on", "served in", "each")
	for _, f := range b.turns {
		table.Add(f.waiters, titles[f.kind], f, report.Micros(f.took/time.Duration(max(f.served, 1)))+" µs")
	}
	return table.String()
}

func (f turnFigure) String() string {
	if f.served < f.waiters {
		return fmt.Sprintf("%d in %v, then patience ended", f.served, f.took)
	}
	return millis(f.took)
}

func (b *bench) namesTable() string {
	table := report.NewTable("names", "on", "taken in", "resident before", "with them", "each", "requests while idle, before", "with them")
	for _, f := range b.names {
		table.Add(report.Thousands(float64(f.names)), titles[f.kind], fmt.Sprintf("%.1f s", f.took), mebi(f.idle), mebi(f.resident),
			fmt.Sprintf("%d bytes", (f.resident-f.idle)/int64(f.names)), f.before, f.after)
	}
	return table.String()
}

func percent(f float64) string { return fmt.Sprintf("%.2f %%", 100*f) }

func millis(d time.Duration) string {
	return report.Thousands(float64(d)/float64(time.Millisecond)) + " ms"
}

func mebi(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// series are the colours of the picture.
var series = map[string]int{"": 0, "file": 1, "redis": 2, "zookeeper": 3}

func (b *bench) latencyChart() report.Chart {
	c := report.Chart{Title: "Latency: the median, the line goes on to p99; red: the bound", Unit: "µs", Log: true, Series: []string{"floor", "file", "Redis", "ZooKeeper"}}
	micros := func(d time.Duration) float64 { return float64(d) / 1000 }
	limits := map[string]time.Duration{}
	for kind, trip := range b.floors.fuse {
		limits[repeatedRow+kind] = 2 * trip * 13 / 10
	}
	limits[firstRow+"redis"] = 2*b.floors.fuse["redis"] + 2*b.floors.server["redis"].p50 + 30*time.Microsecond
	limits[handRow+"redis"] = 2*b.floors.fuse["redis"] + 3*b.floors.server["redis"].p50 + 60*time.Microsecond
	at := map[string]int{}
	for _, l := range b.latencies {
		i, ok := at[l.what]
		if !ok {
			i = len(c.Groups)
			at[l.what] = i
			c.Groups = append(c.Groups, report.Group{Label: l.what})
		}
		c.Groups[i].Bars = append(c.Groups[i].Bars, report.Bar{Series: series[l.kind], Value: micros(l.p50), To: micros(l.p99),
			Bound: micros(limits[l.what+l.kind]), Text: report.Micros(l.p50)})
	}
	return c
}

func (b *bench) crowdChart() report.Chart {
	c := report.Chart{Title: "Crowds on one name: locks a second; red: the bound", Log: true, Series: []string{"", "file", "Redis", "ZooKeeper"}}
	at := map[string]int{}
	for _, f := range b.crowds {
		label := fmt.Sprintf("%d processes, %d mounts, %s", f.processes, f.mounts, f.how)
		i, ok := at[label]
		if !ok {
			i = len(c.Groups)
			at[label] = i
			c.Groups = append(c.Groups, report.Group{Label: label})
		}
		limit := 0.0
		if f.processes == 16 && f.how == "write" {
			limit = 24000
		}
		c.Groups[i].Bars = append(c.Groups[i].Bars, report.Bar{Series: series[f.kind], Value: f.rate, Bound: limit,
			Text: fmt.Sprintf("%s (least/most %s)", report.Thousands(f.rate), f.fairness())})
	}
	return c
}
