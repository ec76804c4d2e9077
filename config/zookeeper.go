package config

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"time"
)

// zookeeperKeys is what a ZooKeeper config says, before it is put together.
// The keys are lockfs's own and the keyword arguments of Python's kazoo.
type zookeeperKeys struct {
	hosts       []value // where they stand, for messages
	port        int
	chroot      string
	credentials credentials
	timeout     time.Duration
}

const (
	hostsForm  = "write host or host:port, several in a list or with commas between"
	chrootForm = "write a path such as /lockfs"
)

// zookeeper decodes the config of an ensemble.
func (v value) zookeeper() *ZooKeeper {
	k := &zookeeperKeys{port: defaultZooKeeperPort, timeout: defaultZooKeeperTimeout}
	v.each(zookeeperFields(k), "write {hosts: HOST, port: PORT}")
	z := &ZooKeeper{Chroot: strings.TrimRight(k.chroot, "/"), Timeout: k.timeout,
		Username: k.credentials.username, Password: k.credentials.password}
	for _, at := range k.hosts {
		k.addHosts(z, at)
	}
	if k.hosts == nil {
		z.Hosts = []string{joinPort("localhost", k.port)}
	}
	switch {
	case z.Username == "" && z.Password != "":
		v.sub("password", v.node).fail("is set without username", "set both for digest authentication")
	case z.Password == "" && z.Username != "":
		v.sub("username", v.node).fail("is set without password", "set both for digest authentication")
	case strings.Contains(z.Username, ":"):
		v.sub("username", v.node).fail("has a colon in it", "digest authentication knows no such names")
	}
	return z
}

func zookeeperFields(k *zookeeperKeys) fields {
	known := fields{
		"hosts":     func(v value) { k.hosts = v.listOrOne(hostsForm) },
		"port":      func(v value) { v.integer(&k.port, 1, 65535) },
		"chroot":    func(v value) { v.text(&k.chroot, chrootForm, checkChroot) },
		"timeout":   func(v value) { v.timeout(&k.timeout) },
		"auth_data": func(v value) { v.authData(&k.credentials) },
		"use_ssl": func(v value) {
			var on bool
			if v.boolean(&on); on {
				v.fail("TLS to ZooKeeper is not supported", "leave it out, and go through a tunnel where the network is not trusted")
			}
		},
	}
	k.credentials.add(known, "")
	known.ignore("randomize_hosts", "read_only", "client_id", "connection_retry", "command_retry",
		"verify_certs", "ca", "certfile", "keyfile")
	return optional(known)
}

// addHosts adds "a,b:2182,[::1]:2183/chroot", a chroot being the last thing
// in it, as in every ZooKeeper client.
func (k *zookeeperKeys) addHosts(z *ZooKeeper, at value) {
	s, ok := at.scalar(hostsForm, "!!str")
	if !ok {
		return
	}
	if i := strings.Index(s, "/"); i >= 0 {
		chroot := strings.TrimRight(s[i:], "/")
		s = s[:i]
		switch err := checkChroot(chroot); {
		case chroot == "": // a slash alone is the root
		case err != nil:
			at.fail("the path behind the hosts "+err.Error(), chrootForm)
			return
		case z.Chroot != "" && z.Chroot != chroot:
			at.fail("has another path behind the hosts than chroot or the host before", "keep one of them")
			return
		default:
			z.Chroot = chroot
		}
	}
	for host := range strings.SplitSeq(s, ",") {
		address, err := hostAddress(strings.TrimSpace(host), k.port)
		if err != nil {
			at.fail(at.shown()+" "+err.Error(), hostsForm)
			return
		}
		z.Hosts = append(z.Hosts, address)
	}
}

// hostAddress adds the port to a host that has none.
func hostAddress(s string, port int) (string, error) {
	if s == "" {
		return "", errors.New("has an empty host")
	}
	host := s
	if h, p, err := net.SplitHostPort(s); err == nil {
		if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
			return "", errors.New("has a port that is not a number from 1 to 65535")
		}
		host = h
	} else if inner, ok := strings.CutPrefix(s, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	if host == "" || checkHost(host) != nil {
		return "", errors.New("is not a host name or address")
	}
	return joinPort(host, port), nil
}

func checkChroot(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errors.New("does not begin with a slash")
	}
	for component := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if component == "." || component == ".." || component == "" && strings.Trim(path, "/") != "" {
			return errors.New(`has an empty, "." or ".." component`)
		}
	}
	return nil
}

// authData decodes kazoo's [[digest, "user:password"]].
func (v value) authData(into *credentials) {
	const form = `write [[digest, "USER:PASSWORD"]], or username and password`
	for _, pair := range v.elements(form) {
		parts := pair.elements(form)
		if len(parts) != 2 {
			pair.fail("is not a scheme and a credential", form)
			return
		}
		var scheme, credential string
		parts[0].secret(&scheme)
		parts[1].secret(&credential)
		user, password, ok := strings.Cut(credential, ":")
		if scheme != "digest" || !ok {
			pair.fail("is not of the scheme digest", form)
			return
		}
		if into.password != "" {
			pair.fail("is set beside another password", "keep one of the two")
			return
		}
		into.username, into.password = user, password
	}
}
