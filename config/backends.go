package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	defaultRedisPort        = 6379
	defaultSentinelPort     = 26379
	defaultRedisTimeout     = time.Second
	defaultZooKeeperPort    = 2181
	defaultZooKeeperTimeout = 5 * time.Second
	minTimeout, maxTimeout  = 10 * time.Millisecond, 5 * time.Minute

	backendForm = "write {type: redis|zookeeper|file, config: {…}}"
)

// backendList decodes the list of back ends, which is also the whole file in
// the Python library's format.
func (v value) backendList(into *[]Backend) {
	elements := v.elements("write a list: - " + backendForm)
	if v.node.Kind == yaml.SequenceNode && len(elements) == 0 {
		v.fail("names no back end", "write at least one: - "+backendForm)
	}
	for _, element := range elements {
		if b, ok := element.backend(); ok {
			*into = append(*into, b)
		}
	}
}

// backend decodes {type: …, config: …}. ok is false where a fault was noted.
func (v value) backend() (b Backend, ok bool) {
	faults := len(v.d.errs)
	var decode func(value) Backend
	config := v.sub("config", &yaml.Node{Kind: yaml.MappingNode, Line: v.node.Line})
	v.each(backendFields(&decode, &config), backendForm)
	switch {
	case len(v.d.errs) > faults:
		return b, false
	case decode == nil:
		v.fail("has no type", backendForm)
		return b, false
	}
	b = decode(config)
	return b, len(v.d.errs) == faults
}

func backendFields(decode *func(value) Backend, config *value) fields {
	types := map[string]func(value) Backend{
		"redis":     func(v value) Backend { return Backend{Redis: v.redis()} },
		"zookeeper": func(v value) Backend { return Backend{ZooKeeper: v.zookeeper()} },
		"file":      func(v value) Backend { return Backend{File: v.fileBackend()} },
	}
	return fields{
		"type": func(v value) { oneOf(v, decode, types) },
		"config": func(v value) {
			if !v.isNull() {
				*config = v
			}
		},
	}
}

// optional lets a null stand for a key that is not there, as None does in Python.
func optional(known fields) fields {
	for name, decode := range known {
		known[name] = func(v value) {
			if !v.isNull() {
				decode(v)
			}
		}
	}
	return known
}

// ignore accepts keys that the Python library's clients know and that mean
// nothing here.
func (known fields) ignore(names ...string) {
	for _, name := range names {
		known[name] = func(v value) { v.d.ignored = append(v.d.ignored, v.key) }
	}
}

// credentials are keys that Redis and ZooKeeper share.
type credentials struct {
	username, password string
	fromFile           bool
}

// add adds the keys, each with prefix before it.
func (c *credentials) add(known fields, prefix string) {
	known[prefix+"username"] = func(v value) { v.secret(&c.username) }
	known[prefix+"password"] = func(v value) {
		if c.fromFile {
			v.fail("is set beside "+prefix+"password_file", "keep one of the two")
			return
		}
		v.secret(&c.password)
	}
	known[prefix+"password_file"] = func(v value) {
		if c.password != "" {
			v.fail("is set beside "+prefix+"password", "keep one of the two")
			return
		}
		c.fromFile = true
		v.passwordFile(&c.password)
	}
}

// passwordFile stores the contents of the file that the value names, without
// the line's end. A relative path starts at the configuration's directory.
func (v value) passwordFile(into *string) {
	var path string
	if v.text(&path, "write the path of a file that holds the password", nil); path == "" {
		return
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(v.d.file), path)
	}
	data, err := readSmall(path)
	if err != nil {
		v.fail("can't be read: "+err.Error(), "name a readable file that holds the password")
		return
	}
	*into = strings.TrimRight(string(data), "\r\n")
	if *into == "" {
		v.fail(path+" is empty", "write the password into it")
	}
}

func (v value) timeout(into *time.Duration) { v.duration(into, minTimeout, maxTimeout, true) }

// checkHost accepts a host name or an IP address, without a port.
func checkHost(host string) error {
	switch {
	case strings.ContainsAny(host, "/@ \t\r\n,[]"):
		return errors.New("is not a host name or address")
	case strings.Contains(host, ":") && net.ParseIP(strings.Split(host, "%")[0]) == nil:
		return errors.New("has a port in it")
	}
	return nil
}

func joinPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// fileBackend decodes the config of a directory.
func (v value) fileBackend() *File {
	f := &File{}
	faults := len(v.d.errs)
	v.each(fileFields(f), "write {path: /a/directory}")
	if f.Path == "" && len(v.d.errs) == faults {
		path, err := defaultFilePath()
		if err != nil {
			v.fail(err.Error(), "write config: {path: /a/directory}")
		}
		f.Path = path
	}
	return f
}

func fileFields(f *File) fields {
	return optional(fields{
		"path": func(v value) { v.text(&f.Path, "write an absolute path", checkAbsolute) },
	})
}

func checkAbsolute(path string) error {
	if !filepath.IsAbs(path) {
		return errors.New("is not an absolute path")
	}
	return nil
}

// defaultFilePath is where the file back end keeps its locks: one place for
// all users where root mounts, else one a user.
func defaultFilePath() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/lockfs", nil
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "lockfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no directory for the file back end: %w", err)
	}
	return filepath.Join(home, ".local/state/lockfs"), nil
}
