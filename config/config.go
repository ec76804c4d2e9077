package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	defaultTTL     = 15 * time.Second
	minTTL, maxTTL = 2 * time.Second, 5 * time.Minute
	maxLockDelay   = 5 * time.Minute
	defaultKeep    = time.Second
	maxKeep        = time.Hour
	maxClusterName = 64
	maxNodeName    = 128
)

// Default is the configuration where there is no file, in which the back ends
// are those that the Python library documents.
func Default() (*Config, error) {
	c := defaults()
	path, err := defaultFilePath()
	if err != nil {
		return nil, fmt.Errorf("default configuration: %w; name a configuration file with -c", err)
	}
	c.Backends = []Backend{
		{Redis: &Redis{Network: "tcp", Address: "spock:8885", Timeout: time.Second}},
		{Redis: &Redis{Network: "tcp", Address: "localhost:6379", Timeout: time.Second}},
		{File: &File{Path: path}},
	}
	return c, nil
}

// defaults is a configuration without back ends.
func defaults() *Config {
	node, err := os.Hostname()
	if err != nil || checkNode(node) != nil {
		node = "unnamed" // the name is for people only; the back end makes sessions unique
	}
	return &Config{
		Cluster:    "default",
		Node:       node,
		SessionTTL: defaultTTL,
		KeepIdle:   defaultKeep,
		Log:        Log{Level: slog.LevelInfo, Format: "text"},
	}
}

// draft is a configuration while it is decoded. Policies are filled up from
// the mount's policy last, when that is known.
type draft struct {
	*Config
	policies []draftPolicy
	// onLosts are to be compared with session_ttl when all is known.
	onLosts []onLost
}

type draftPolicy struct {
	pattern           string
	lockOnOpen        *LockOnOpen
	noWritePermission *NoWritePermission
	onLost            *OnLost
}

// mapping is a file in lockfs's own form.
func (d *draft) mapping(v value) {
	known := topFields(d)
	v.each(known, "write a mapping (cluster: …, backends: …) or a list of back ends")
	faults := len(v.d.errs) > 0
	if d.Backends == nil && !faults {
		v.fail("backends is missing", "write backends: [{type: redis, config: {host: HOST, port: PORT}}]")
	}
}

func topFields(d *draft) fields {
	known := optionFields(d)
	known["policies"] = func(v value) {
		for _, element := range v.elements("write a list: - {names: PATTERN, lock_on_open: …}") {
			element.policy(d)
		}
	}
	known["log"] = func(v value) { v.each(logFields(&d.Log), "write {level: info, format: text, file: PATH}") }
	known["backends"] = func(v value) { v.backendList(&d.Backends) }
	return known
}

// optionFields are the keys that can also be given on the command line.
func optionFields(d *draft) fields {
	return fields{
		"cluster": func(v value) {
			v.text(&d.Cluster, fmt.Sprintf("write 1 to %d of the characters a-z A-Z 0-9 . _ -, the first no dot", maxClusterName), checkCluster)
		},
		"node": func(v value) {
			v.text(&d.Node, fmt.Sprintf("write 1 to %d printable characters without spaces", maxNodeName), checkNode)
		},
		"mountpoint":          func(v value) { v.text(&d.Mountpoint, "write an absolute path", checkAbsolute) },
		"lock_on_open":        func(v value) { oneOf(v, &d.Policy.LockOnOpen, lockOnOpenWords) },
		"no_write_permission": func(v value) { oneOf(v, &d.Policy.NoWritePermission, noWriteWords) },
		"on_lost":             func(v value) { v.onLost(d, &d.Policy.OnLost) },
		"session_ttl":         func(v value) { v.duration(&d.SessionTTL, minTTL, maxTTL, false) },
		"lock_delay":          func(v value) { v.duration(&d.LockDelay, 0, maxLockDelay, false) },
		"keep_idle":           func(v value) { v.duration(&d.KeepIdle, 0, maxKeep, false) },
	}
}

var (
	lockOnOpenWords = map[string]LockOnOpen{"auto": LockAuto, "always": LockAlways, "never": LockNever}
	noWriteWords    = map[string]NoWritePermission{"lock": NoWriteLock, "skip": NoWriteSkip}
	levelWords      = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	formatWords     = map[string]string{"text": "text", "json": "json"}
)

func logFields(l *Log) fields {
	return fields{
		"level":  func(v value) { oneOf(v, &l.Level, levelWords) },
		"format": func(v value) { oneOf(v, &l.Format, formatWords) },
		"file":   func(v value) { v.text(&l.File, "write an absolute path", checkAbsolute) },
	}
}

// policy decodes one element of policies.
func (v value) policy(d *draft) {
	const form = "write {names: PATTERN, lock_on_open: …}"
	var p draftPolicy
	faults := len(v.d.errs)
	v.each(policyFields(d, &p), form)
	if p.pattern == "" && len(v.d.errs) == faults {
		v.fail("has no names", form)
	}
	d.policies = append(d.policies, p)
}

func policyFields(d *draft, p *draftPolicy) fields {
	return fields{
		"names": func(v value) {
			v.text(&p.pattern, "write a pattern such as 'etl/*' or '**/*.lck'", checkPattern)
		},
		"lock_on_open": func(v value) {
			p.lockOnOpen = new(LockOnOpen)
			oneOf(v, p.lockOnOpen, lockOnOpenWords)
		},
		"no_write_permission": func(v value) {
			p.noWritePermission = new(NoWritePermission)
			oneOf(v, p.noWritePermission, noWriteWords)
		},
		"on_lost": func(v value) {
			p.onLost = new(OnLost)
			v.onLost(d, p.onLost)
		},
	}
}

// finish fills up the policies.
func (d *draft) finish() *Config {
	for _, p := range d.policies {
		full := NamePolicy{Pattern: p.pattern, Policy: d.Policy}
		if p.lockOnOpen != nil {
			full.LockOnOpen = *p.lockOnOpen
		}
		if p.noWritePermission != nil {
			full.NoWritePermission = *p.noWritePermission
		}
		if p.onLost != nil {
			full.OnLost = *p.onLost
		}
		d.Policies = append(d.Policies, full)
	}
	return d.Config
}

// checkCluster: back ends make directories, nodes and keys of the name.
func checkCluster(name string) error {
	if len(name) > maxClusterName || strings.HasPrefix(name, ".") {
		return errors.New("is too long or begins with a dot")
	}
	for _, c := range []byte(name) {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", rune(c)) {
			return errors.New("has a character that is not allowed")
		}
	}
	return nil
}

func checkNode(name string) error {
	if len(name) > maxNodeName {
		return errors.New("is too long")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' {
			return errors.New("has a character that is not allowed")
		}
	}
	return nil
}

// override applies what the command line says, and checks what hangs together.
func (d *draft) override(dec *decoder, options []Option) {
	known := optionFields(d)
	for _, o := range options {
		node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: o.Value}
		v := value{dec, o.Key, node}
		if decode, ok := known[o.Key]; ok {
			decode(v)
		} else {
			v.fail("unknown option", suggest(o.Key, known))
		}
	}
	d.checkOnLost()
}
