package logging

import (
	"bytes"
	"context"
	"log/slog"
	"log/syslog"
	"sync"

	"lockfs/config"
)

// sink is a syslog connection.
type sink interface {
	Debug(string) error
	Info(string) error
	Warning(string) error
	Err(string) error
}

func dialSyslog() (sink, error) {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "lockfs")
	if err != nil {
		return nil, err // not w: a nil *Writer is no nil sink
	}
	return w, nil
}

// syslogHandler formats with slog and sends with the record's priority. A
// machine without a syslog loses the log, not the mount: each record tries
// again to reach one.
type syslogHandler struct {
	format slog.Handler // writes into out.line
	out    *syslogOut
}

// syslogOut is shared by the handlers that WithAttrs and WithGroup derive.
type syslogOut struct {
	mu   sync.Mutex
	dial func() (sink, error)
	sink sink // nil: not reached yet
	line bytes.Buffer
}

func newSyslogHandler(c config.Log, dial func() (sink, error)) *syslogHandler {
	out := &syslogOut{dial: dial}
	// syslog has its own time and level.
	drop := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}
	return &syslogHandler{newHandler(&out.line, c, drop), out}
}

func (h *syslogHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.format.Enabled(ctx, level)
}

func (h *syslogHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return &syslogHandler{h.format.WithAttrs(a), h.out}
}

func (h *syslogHandler) WithGroup(name string) slog.Handler {
	return &syslogHandler{h.format.WithGroup(name), h.out}
}

func (h *syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	o := h.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sink == nil {
		s, err := o.dial()
		if err != nil {
			return err
		}
		o.sink = s
	}
	o.line.Reset()
	if err := h.format.Handle(ctx, r); err != nil {
		return err
	}
	line := string(bytes.TrimRight(o.line.Bytes(), "\n"))
	switch {
	case r.Level >= slog.LevelError:
		return o.sink.Err(line)
	case r.Level >= slog.LevelWarn:
		return o.sink.Warning(line)
	case r.Level >= slog.LevelInfo:
		return o.sink.Info(line)
	}
	return o.sink.Debug(line)
}
