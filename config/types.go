// Package config is the configuration file: its types, defaults, strict
// decoding and validation. It opens no connection.
package config

import (
	"log/slog"
	"time"
)

// Config is a whole configuration, defaults filled in.
type Config struct {
	// Cluster separates the locks of several clusters on one server.
	Cluster string
	// Node is this mount's name in logs and in the back end; default: the host name.
	Node string
	// Mountpoint may be empty: then the command line names it.
	Mountpoint string
	// SessionTTL is the lease: a node that died is cleaned up after it.
	SessionTTL time.Duration
	// LockDelay is how long the locks of a node that died stay closed after its lease.
	LockDelay time.Duration
	// KeepIdle is how long the node keeps a lock that nobody on it holds any more, when it is likely to be the next
	// to want it; others get it at once all the same. 0: not at all.
	KeepIdle time.Duration
	// Policy holds for all names that no entry of Policies matches.
	Policy Policy
	// Policies are tried in order; the first whose Pattern matches decides
	// what it sets; what it does not set comes from Policy.
	Policies []NamePolicy
	Log      Log
	// Backends in the order in which to try them; never empty.
	Backends []Backend
	// File is where the configuration came from, empty for the default.
	File string
	// Ignored names the keys of the Python library's clients that were
	// accepted and have no meaning here ("backends[0].config.encoding"), for
	// the caller to log.
	Ignored []string
}

// Policy is what can be set for the mount and by name pattern.
type Policy struct {
	LockOnOpen        LockOnOpen
	NoWritePermission NoWritePermission
	OnLost            OnLost
}

// NamePolicy is a policy for some names.
type NamePolicy struct {
	// Pattern is matched against the name below the mount point as
	// path.Match does, "**" standing for any number of components.
	Pattern string
	Policy
}

// For returns the policy for a name.
// LockOnOpen says when an open for writing takes the write lock.
type LockOnOpen uint8

const (
	// LockAuto: always, except where an explicit call can be expected to follow.
	LockAuto LockOnOpen = iota
	// LockAlways: always.
	LockAlways
	// LockNever: only explicit calls lock.
	LockNever
)

// NoWritePermission says what a lock call gets whose caller may not write the lock file.
type NoWritePermission uint8

const (
	// NoWriteLock: a lock like anybody.
	NoWriteLock NoWritePermission = iota
	// NoWriteSkip: success and no lock.
	NoWriteSkip
)

// Log says what is logged and where.
type Log struct {
	Level slog.Level
	// Format is "text" or "json".
	Format string
	// File is where the log goes; empty: standard error with --foreground, else syslog.
	File string
}

// Backend is one server to try: exactly one of the pointers is set.
type Backend struct {
	Redis     *Redis
	ZooKeeper *ZooKeeper
	File      *File
}

// Redis is a Redis server. A url in the file has been taken apart into these fields.
// It is named by Address, by Sentinels or by ClusterNodes, and the other two are empty.
type Redis struct {
	// Network is "tcp" or "unix", Address "host:port" or the socket's path.
	Network, Address string
	// Sentinels are "host:port"; they know which server the master MasterName is.
	Sentinels                          []string
	MasterName                         string
	SentinelUsername, SentinelPassword string
	// ClusterNodes, "host:port", are some nodes of a Redis Cluster.
	ClusterNodes       []string
	DB                 int
	Username, Password string
	TLS                *TLS
	// Timeout bounds connecting and each request.
	Timeout time.Duration
	// Replicas is how many replicas have to know of a grant before it counts.
	Replicas int
}

// TLS are PEM files, each of which may be empty.
type TLS struct {
	CAFile, CertFile, KeyFile string
	ServerName                string
	InsecureSkipVerify        bool
}

// ZooKeeper is an ensemble.
type ZooKeeper struct {
	// Hosts are "host:port".
	Hosts []string
	// Chroot is a path below which everything is kept, "" or "/a/b".
	Chroot string
	// Username and Password are for the digest scheme, where not empty.
	Username, Password string
	// Timeout bounds connecting and each request.
	Timeout time.Duration
}

// File is a directory on this machine.
type File struct {
	Path string
}
