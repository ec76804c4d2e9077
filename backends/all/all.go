// Package all is the list of engines: it opens the first back end of a
// configuration that answers.
package all

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"lockfs/backends"
	"lockfs/backends/file"
	"lockfs/backends/redis"
	"lockfs/backends/zookeeper"
	"lockfs/config"
)

// Open tries the back ends in their order, once each and bounded by their
// own time-outs, and returns the first that answers. The choice is for good: two nodes
// on different back ends exclude nobody, so a mount never moves to another. The log
// says what was tried and which one is used. If none answers, the error has each with
// its reason, and wraps them. A nil log discards. The caller closes the back end.
func Open(ctx context.Context, c *config.Config, log *slog.Logger) (backends.Backend, error) {
	backend, _, err := OpenFirst(ctx, c, log)
	return backend, err
}

// OpenFirst is Open, and says which entry of c.Backends it is.
func OpenFirst(ctx context.Context, c *config.Config, log *slog.Logger) (b backends.Backend, index int, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var failures []error
	for i, b := range c.Backends {
		backend, err := open(ctx, b, c.Cluster, log)
		if err == nil {
			announce(log, backend, i)
			return backend, i, nil
		}
		failures = append(failures, named(b, err))
		level := slog.LevelInfo
		if !errors.Is(err, backends.ErrUnavailable) {
			level = slog.LevelWarn // it is there, and does not work: people want to know
		}
		log.Log(ctx, level, "back end can't be used", "backend", b.String(), "reason", err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(failures) == 0 {
		return nil, 0, errors.New("the configuration names no back end")
	}
	return nil, 0, errors.Join(failures...)
}

// named names the back end in an error that does not yet.
func named(b config.Backend, err error) error {
	if strings.Contains(err.Error(), b.String()) {
		return err
	}
	return fmt.Errorf("%v: %w", b, err)
}

// announce says which back end is used. A local one behind servers is used
// because none of them answers, which is seldom what anybody wants.
func announce(log *slog.Logger, b backends.Backend, index int) {
	log.Info("back end in use", "backend", b.String())
	if b.Local() && index > 0 {
		log.Warn("NO SERVER ANSWERS: THE LOCKS OF THIS MOUNT END AT THIS MACHINE; "+
			"start one of the servers and mount again, or take 'type: file' out of the configuration", "backend", b.String())
	}
}

// open opens one back end.
func open(ctx context.Context, b config.Backend, cluster string, log *slog.Logger) (backends.Backend, error) {
	switch {
	case b.Redis != nil:
		return opened(redis.Open(ctx, *b.Redis, cluster, log))
	case b.ZooKeeper != nil:
		return opened(zookeeper.Open(ctx, *b.ZooKeeper, cluster, log))
	case b.File != nil:
		return opened(file.Open(ctx, *b.File, cluster, log))
	}
	return nil, errors.New("of no known type")
}

// opened keeps a nil pointer with an error from becoming a back end that is not nil.
func opened[B backends.Backend](b B, err error) (backends.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
