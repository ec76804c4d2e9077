package logging

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lockfs/config"
)

func TestForegroundGoesToStandardError(t *testing.T) {
	var stderr strings.Builder
	l, err := Open(config.Log{Level: slog.LevelInfo, Format: "text"}, true, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	l.Debug("no")
	l.Warn("yes", "lock", "a b")
	if got := stderr.String(); strings.Contains(got, "no") || strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=WARN msg=yes lock="a b"`) {
		t.Errorf("got %q", got)
	}
	if err := errors.Join(l.Reopen(), l.Close()); err != nil {
		t.Error(err)
	}
}

func TestWarningsReachTheTerminalUntilStarted(t *testing.T) {
	var stderr strings.Builder
	path := filepath.Join(t.TempDir(), "log")
	l, err := Open(config.Log{Level: slog.LevelInfo, Format: "json", File: path}, false, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Info("quiet")
	l.With("node", "n1").Warn("locks end\nhere", "backend", "file")
	l.Error("bad")
	l.Started()
	l.Error("late")
	if got, want := stderr.String(), "lockfs: warning: locks end here (backend file)\nlockfs: error: bad\n"; got != want {
		t.Errorf("terminal: %q, want %q", got, want)
	}
	if got := messages(t, path); !slices.Equal(got, []string{"quiet", "locks end\nhere", "bad", "late"}) {
		t.Errorf("log: %q", got)
	}
}

// messages returns the messages in a JSON log.
func messages(t *testing.T, path string) (all []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var record struct{ Msg string }
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, record.Msg)
	}
	return all
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := Open(config.Log{Format: "json", File: path}, true, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Info("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Info("two")
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Info("three")
	if old, now := messages(t, path+".1"), messages(t, path); !slices.Equal(old, []string{"one", "two"}) || !slices.Equal(now, []string{"three"}) {
		t.Errorf("old %q, new %q", old, now)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with the directory gone: %v", err)
	}
	if l.Handler().Handle(t.Context(), slog.Record{Message: "still"}) != nil {
		t.Error("the old file was given up")
	}
}

func TestBadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no", "log")
	_, err := Open(config.Log{File: path}, false, os.Stderr)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

// recorder is a syslog that keeps what it gets.
type recorder struct{ lines []string }

func (r *recorder) add(priority, line string) error {
	r.lines = append(r.lines, priority+" "+line)
	return nil
}
func (r *recorder) Debug(s string) error   { return r.add("debug", s) }
func (r *recorder) Info(s string) error    { return r.add("info", s) }
func (r *recorder) Warning(s string) error { return r.add("warning", s) }
func (r *recorder) Err(s string) error     { return r.add("err", s) }

func TestSyslog(t *testing.T) {
	var r recorder
	down := errors.New("no syslog")
	h := newSyslogHandler(config.Log{Level: slog.LevelDebug, Format: "text"}, func() (sink, error) { return &r, down })
	l := slog.New(h)
	l.Info("lost")
	if err := h.Handle(t.Context(), slog.Record{}); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	down = nil // it comes up later
	h.out.dial = func() (sink, error) { return &r, nil }
	l.Debug("d")
	l.With("node", "n").Info("i", "time", 1)
	l.WithGroup("g").Warn("w", "level", 2)
	l.Error("e")
	want := []string{"debug msg=d", "info msg=i node=n", "warning msg=w g.level=2", "err msg=e"}
	if !slices.Equal(r.lines, want) {
		t.Errorf("got %q", r.lines)
	}
}
