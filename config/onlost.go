package config

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// OnLost says what happens to the processes that have a descriptor open
// through which a lock was held that is lost. EIO on that descriptor comes in any
// case. The zero value is that alone.
type OnLost struct {
	// Signal is sent at once; 0: none.
	Signal syscall.Signal
	// KillAfter, where it is not 0, is when KILL follows for those that have not ended by then.
	KillAfter time.Duration
}

// lostSignals are the signals that can be named.
var lostSignals = map[string]syscall.Signal{
	"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP,
	"QUIT": syscall.SIGQUIT, "ABRT": syscall.SIGABRT, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

// String is the form that the file has: "eio", "TERM", "TERM then KILL after 3s".
func (o OnLost) String() string {
	text := "eio"
	for name, s := range lostSignals {
		if s == o.Signal {
			text = name
		}
	}
	if o.KillAfter > 0 {
		text += " then KILL after " + short(o.KillAfter)
	}
	return text
}

// TimeOnLost is how long on_lost may take under a session_ttl: half of the
// lease's margin (package lease: a fifth of the TTL at least three quarters of which every
// engine keeps). The other half is for noticing, and for finding the processes.
func TimeOnLost(ttl time.Duration) time.Duration { return ttl / 10 }

// GraceOnLost is how long after the lease's end, of that other half, a server
// may take to say that it is at it; then its keeper does it.
func GraceOnLost(ttl time.Duration) time.Duration {
	return min(ttl/30, 250*time.Millisecond)
}

// parseOnLost reads what String writes.
func parseOnLost(text string) (o OnLost, ok bool) {
	if text == "eio" {
		return o, true
	}
	first, after, then := strings.Cut(text, " then KILL after ")
	o.Signal, ok = lostSignals[first]
	if !then || !ok {
		return o, ok
	}
	d, err := time.ParseDuration(after)
	o.KillAfter = d
	return o, err == nil && d > 0 && o.Signal != syscall.SIGKILL
}

// onLost stores an on_lost, to be checked against session_ttl when that is known.
func (v value) onLost(d *draft, into *OnLost) {
	names := sortedKeys(lostSignals)
	i := slices.Index(names, "TERM") // the usual ones first
	names = append([]string{"TERM"}, slices.Delete(names, i, i+1)...)
	form := "write eio, a signal (" + strings.Join(names, ", ") + "), or such as 'TERM then KILL after 1s'"
	text, ok := v.scalar(form, "!!str")
	if !ok {
		return
	}
	o, ok := parseOnLost(text)
	if !ok {
		v.fail(v.shown()+" is not known", form)
		return
	}
	*into = o
	// What the command line says takes the place of what the file said.
	d.onLosts = slices.DeleteFunc(d.onLosts, func(before onLost) bool { return before.into == into })
	d.onLosts = append(d.onLosts, onLost{v, v.d.file, into})
}

// onLost is an on_lost, and where it stands.
type onLost struct {
	value
	file string
	into *OnLost
}

// checkOnLost refuses what would come too late: after another node may have got the lock.
func (d *draft) checkOnLost() {
	most := TimeOnLost(d.SessionTTL)
	for _, o := range d.onLosts {
		after := o.into.KillAfter
		if after <= most {
			continue
		}
		way := fmt.Sprintf("with session_ttl %s the KILL must come within %s, before another node can get the lock", short(d.SessionTTL), short(most))
		if need := (10*after + time.Second - 1).Truncate(time.Second); need <= maxTTL {
			way += fmt.Sprintf("; or set session_ttl to %s or more", short(need))
		}
		o.d.file = o.file
		o.fail(short(after)+" is too long", way)
	}
}
