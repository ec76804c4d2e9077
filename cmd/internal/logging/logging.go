// Package logging sets up the log of a mount: to a file, to syslog, or to
// standard error.
//
// Its one idea: while a background mount starts, there is still a person at the
// terminal, so until Started warnings go there as well as to the log.
package logging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"lockfs/config"
)

// Log is a logger with the place that it writes to. The caller closes it.
type Log struct {
	*slog.Logger
	file     *file // nil where the log does not go to a file
	terminal atomic.Pointer[io.Writer]
}

// Open opens the log that c describes. In the foreground what has no file
// goes to stderr, else to syslog, and warnings go to stderr besides until Started.
func Open(c config.Log, foreground bool, stderr io.Writer) (*Log, error) {
	l := &Log{}
	var handler slog.Handler
	switch {
	case c.File != "":
		f, err := openFile(c.File)
		if err != nil {
			return nil, fmt.Errorf("log: %w; name a file in a directory that exists (log: {file: …}), or leave it out", err)
		}
		// What Go itself prints when the program crashes; standard error is closed then.
		_ = debug.SetCrashOutput(f.f, debug.CrashOptions{}) // the log works without
		l.file = f
		handler = newHandler(f, c, nil)
	case foreground:
		handler = newHandler(stderr, c, nil)
	default:
		handler = newSyslogHandler(c, dialSyslog)
	}
	if !foreground {
		l.terminal.Store(&stderr)
	}
	l.Logger = slog.New(&startHandler{handler, l})
	return l, nil
}

// newHandler is slog's handler for the format.
func newHandler(w io.Writer, c config.Log, replace func([]string, slog.Attr) slog.Attr) slog.Handler {
	options := &slog.HandlerOptions{Level: c.Level, ReplaceAttr: replace}
	if c.Format == "json" {
		return slog.NewJSONHandler(w, options)
	}
	return slog.NewTextHandler(w, options)
}

// Started ends the warnings on the terminal.
func (l *Log) Started() { l.terminal.Store(nil) }

// Reopen closes and opens the log's file, for those who rotate logs. It does
// nothing for other logs. On an error the log goes on into the old file.
func (l *Log) Reopen() error {
	if l.file == nil {
		return nil
	}
	if err := l.file.reopen(); err != nil {
		return fmt.Errorf("log goes on into the old file: %w", err)
	}
	return nil
}

// Close closes the log's file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	return errors.Join(debug.SetCrashOutput(nil, debug.CrashOptions{}), l.file.close())
}

// startHandler shows warnings on the terminal until the log's Started.
type startHandler struct {
	slog.Handler
	log *Log
}

func (h *startHandler) Handle(ctx context.Context, r slog.Record) error {
	if w := h.log.terminal.Load(); w != nil && r.Level >= slog.LevelWarn {
		_, _ = io.WriteString(*w, terminalLine(r)) // the log has it as well
	}
	return h.Handler.Handle(ctx, r)
}

func (h *startHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return &startHandler{h.Handler.WithAttrs(a), h.log}
}

func (h *startHandler) WithGroup(name string) slog.Handler {
	return &startHandler{h.Handler.WithGroup(name), h.log}
}

// terminalLine is a record for a person: "lockfs: warning: message (key value, …)".
func terminalLine(r slog.Record) string {
	kind := "warning"
	if r.Level >= slog.LevelError {
		kind = "error"
	}
	var attrs []string
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a.Key+" "+a.Value.Resolve().String())
		return true
	})
	line := "lockfs: " + kind + ": " + r.Message
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	return strings.ReplaceAll(line, "\n", " ") + "\n"
}

// file is a log file that can be opened again.
type file struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

func openFile(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	return &file{path: path, f: f}, nil
}

func (f *file) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f.Write(p)
}

func (f *file) reopen() error {
	again, err := openFile(f.path)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err = f.f.Close()
	f.f = again.f
	_ = debug.SetCrashOutput(f.f, debug.CrashOptions{}) // the log works without
	return err
}

func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f.Close()
}
