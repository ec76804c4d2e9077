package file

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"lockfs/backends/lease"
	"lockfs/backends/queue"
)

// The lock delay of a session that died: its claims stay in the states, and its
// file in its place, until so long after its death was first seen. The kernel
// does not tell when that was, so who sees it first writes it down: as the
// file's modification time, counted on CLOCK_BOOTTIME from 1970. A living one's
// file was written in this century, and states and session files do not
// outlast a boot.

// year2000 tells a time on CLOCK_BOOTTIME from a date.
var year2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// delayLeft returns how long the claims of a session that is dead are still to be
// kept; 0 where it is over, or there is none. The first call is the death's time.
func (a *area) delayLeft(id string) time.Duration {
	p, err := a.presenceOf(id)
	if err != nil || p.LockDelay <= 0 {
		return 0
	}
	path := a.sessionPath(id)
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	now := lease.Now()
	died := now
	if mark := info.ModTime(); mark.Before(year2000) {
		died = time.Duration(mark.UnixNano())
	} else if err := os.Chtimes(path, time.Time{}, time.Unix(0, int64(now))); err != nil {
		a.log.Warn("the time of a node's death can't be written down, its locks stay closed until it can", "file", path, "error", err)
	}
	return max(0, died+p.LockDelay-now)
}

// presenceOf reads a session's file.
func (a *area) presenceOf(id string) (presence, error) {
	var p presence
	text, err := readSmall(a.sessionPath(id))
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fmt.Errorf("read the file of session %s: %w", id, err)
	}
	return p, nil
}

// dropDelayed takes out the requests of a dead session whose claims are kept.
func dropDelayed(st *queue.State, id string) {
	for i := 0; i < len(*st); {
		if e := (*st)[i]; e.Session == id && !e.Granted {
			st.Drop(e.ID)
			continue
		}
		i++
	}
}

// wakeAfter looks after the waits of this session again when a lock delay is over.
func (s *session) wakeAfter(id string, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.delays[id] {
		return
	}
	s.delays[id] = true
	s.owned.Go(func() {
		slept := s.pause(s.life, left+time.Millisecond)
		s.mu.Lock()
		delete(s.delays, id)
		s.mu.Unlock()
		if slept {
			s.reexamine()
			s.a.bury(id)
		}
	})
}
