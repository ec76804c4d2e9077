package config

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// The types that hold a password print as their String, whatever the verb or
// encoder: nothing that logs a configuration has to think of it.

// Format prints the server as String does.
func (r Redis) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// LogValue is what slog prints: no password.
func (r Redis) LogValue() slog.Value { return slog.StringValue(r.String()) }

// String names the server, without a password: "redis at spock:8885, database 0".
func (r Redis) String() string {
	switch {
	case r.Sentinels != nil:
		return fmt.Sprintf("redis master %s of the Sentinels %s, database %d", r.MasterName, strings.Join(r.Sentinels, ","), r.DB)
	case r.ClusterNodes != nil:
		return "redis cluster at " + strings.Join(r.ClusterNodes, ",")
	}
	return fmt.Sprintf("redis at %s, database %d", r.Address, r.DB)
}

// MarshalText keeps the password out of JSON and the like.
func (r Redis) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Format prints the ensemble as String does.
func (z ZooKeeper) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, z.String()) }

// LogValue is what slog prints: no password.
func (z ZooKeeper) LogValue() slog.Value { return slog.StringValue(z.String()) }

// String names the ensemble, without a password: "zookeeper at a:2181,b:2181/chroot".
func (z ZooKeeper) String() string { return "zookeeper at " + strings.Join(z.Hosts, ",") + z.Chroot }

// MarshalText keeps the password out of JSON and the like.
func (z ZooKeeper) MarshalText() ([]byte, error) { return []byte(z.String()), nil }

// String names the directory: "file in /var/lib/lockfs".
func (f File) String() string { return "file in " + f.Path }

// String names the back end, without any secret.
func (b Backend) String() string {
	switch {
	case b.Redis != nil:
		return b.Redis.String()
	case b.ZooKeeper != nil:
		return b.ZooKeeper.String()
	case b.File != nil:
		return b.File.String()
	}
	return "no back end"
}
