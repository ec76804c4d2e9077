package config

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxDB       = 1<<31 - 1
	maxReplicas = 16
)

// redisKeys is what a Redis config says, before it is put together. The keys
// are lockfs's own and the keyword arguments of Python's redis client.
type redisKeys struct {
	url            *url.URL
	urlAt          value
	host, socket   string
	port, db       int
	credentials    credentials
	master         string
	sentinels      []value // where they stand, for messages
	sentinel       credentials
	nodes          []value
	timeout        time.Duration
	connectTimeout time.Duration
	ssl, hasTLS    bool
	replicas       int
	sslKeys        []string
	tls            TLS
}

// redis decodes the config of a Redis server.
func (v value) redis() *Redis {
	k := &redisKeys{host: "localhost", port: defaultRedisPort, db: -1}
	v.each(redisFields(k), "write {host: HOST, port: PORT} or {url: …}")
	timeout := max(k.timeout, k.connectTimeout)
	if timeout == 0 {
		timeout = defaultRedisTimeout
	}
	r := &Redis{Network: "tcp", Address: joinPort(k.host, k.port), Timeout: timeout, Replicas: k.replicas}
	if k.socket != "" {
		r.Network, r.Address = "unix", k.socket
	}
	if k.url != nil {
		if err := k.applyURL(r); err != nil {
			k.urlAt.fail(err.Error(), urlForm)
		}
	}
	if k.db >= 0 {
		r.DB = k.db
	}
	if k.credentials.username != "" {
		r.Username = k.credentials.username
	}
	if k.credentials.password != "" {
		r.Password = k.credentials.password
	}
	switch {
	case k.ssl || k.hasTLS:
		r.TLS = &k.tls
	case r.TLS != nil: // rediss://
		*r.TLS = k.tls
	default:
		// Python's client does not look at them then either.
		v.d.ignored = append(v.d.ignored, k.sslKeys...)
	}
	k.applySentinels(r, v)
	k.applyCluster(r, v)
	return r
}

const (
	serversForm = "write host or host:port, several in a list or with commas between"
	masterForm  = "write the name under which the Sentinels know the master"
	oneWayForm  = "name the server by host, by url, by unix_socket_path, by sentinel_addrs or by cluster_addrs"
)

// applySentinels has Sentinels name the server.
func (k *redisKeys) applySentinels(r *Redis, v value) {
	if k.sentinels == nil {
		const wrong, right = "is set without sentinel_addrs", "name the Sentinels too"
		switch {
		case k.master != "":
			v.sub("master_name", v.node).fail(wrong, right)
		case k.sentinel.username != "":
			v.sub("sentinel_username", v.node).fail(wrong, right)
		case k.sentinel.password != "":
			v.sub("sentinel_password", v.node).fail(wrong, right)
		}
		return
	}
	switch {
	case k.namesOne() || k.nodes != nil:
		v.sub("sentinel_addrs", v.node).fail("is set beside another server", oneWayForm)
	case k.master == "":
		v.sub("sentinel_addrs", v.node).fail("is set without master_name", masterForm)
	}
	r.Network, r.Address = "tcp", ""
	r.MasterName, r.Sentinels = k.master, hostList(k.sentinels, defaultSentinelPort)
	r.SentinelUsername, r.SentinelPassword = k.sentinel.username, k.sentinel.password
}

// applyCluster has nodes of a Redis Cluster name the server.
func (k *redisKeys) applyCluster(r *Redis, v value) {
	if k.nodes == nil {
		return
	}
	switch {
	case k.namesOne():
		v.sub("cluster_addrs", v.node).fail("is set beside another server", oneWayForm)
	case r.DB != 0:
		v.sub("db", v.node).fail("is not 0", "a Redis Cluster has no other databases")
	}
	r.Network, r.Address, r.ClusterNodes = "tcp", "", hostList(k.nodes, defaultRedisPort)
}

// namesOne reports whether the config names one server.
func (k *redisKeys) namesOne() bool {
	return k.url != nil || k.host != "localhost" || k.port != defaultRedisPort || k.socket != ""
}

// hostList decodes "a,b:2182" and the like; each has a port then.
func hostList(all []value, port int) (hosts []string) {
	const form = serversForm
	for _, at := range all {
		text, ok := at.scalar(form, "!!str")
		if !ok {
			return hosts
		}
		for host := range strings.SplitSeq(text, ",") {
			address, err := hostAddress(strings.TrimSpace(host), port)
			switch {
			case err != nil:
				at.fail(at.shown()+" "+err.Error(), form)
				return hosts
			case slices.Contains(hosts, address):
				at.fail(at.shown()+" names a host twice", form)
				return hosts
			}
			hosts = append(hosts, address)
		}
	}
	return hosts
}

func redisFields(k *redisKeys) fields {
	known := fields{
		"url":  func(v value) { k.urlAt = v; v.redisURL(&k.url) },
		"host": func(v value) { v.text(&k.host, "write a host name or an address, and port: beside it", checkHost) },
		"port": func(v value) { v.integer(&k.port, 1, 65535) },
		"unix_socket_path": func(v value) {
			v.text(&k.socket, "write an absolute path", checkAbsolute)
		},
		"replicas":               func(v value) { v.integer(&k.replicas, 0, maxReplicas) },
		"db":                     func(v value) { v.integer(&k.db, 0, maxDB) },
		"socket_timeout":         func(v value) { v.timeout(&k.timeout) },
		"socket_connect_timeout": func(v value) { v.timeout(&k.connectTimeout) },
		"tls": func(v value) {
			k.hasTLS = true
			v.each(tlsFields(&k.tls), "write {ca_file: …, cert_file: …, key_file: …}")
		},
		"ssl":            func(v value) { v.boolean(&k.ssl) },
		"sentinel_addrs": func(v value) { k.sentinels = v.listOrOne(serversForm) },
		"master_name": func(v value) {
			v.text(&k.master, masterForm, nil)
		},
		"cluster_addrs": func(v value) { k.nodes = v.listOrOne(serversForm) },
	}
	k.credentials.add(known, "")
	k.sentinel.add(known, "sentinel_")
	for name, decode := range sslFields(&k.tls) {
		known[name] = func(v value) {
			k.sslKeys = append(k.sslKeys, v.key)
			decode(v)
		}
	}
	known.ignore("socket_keepalive", "socket_keepalive_options", "encoding", "encoding_errors",
		"charset", "errors", "decode_responses", "retry_on_timeout", "retry_on_error", "max_connections",
		"single_connection_client", "health_check_interval", "client_name", "lib_name", "lib_version", "protocol")
	return optional(known)
}

const pathForm = "write the path of a PEM file"

func tlsFields(t *TLS) fields {
	return optional(fields{
		"ca_file":              func(v value) { v.text(&t.CAFile, pathForm, checkAbsolute) },
		"cert_file":            func(v value) { v.text(&t.CertFile, pathForm, checkAbsolute) },
		"key_file":             func(v value) { v.text(&t.KeyFile, pathForm, checkAbsolute) },
		"server_name":          func(v value) { v.text(&t.ServerName, "write a host name", checkHost) },
		"insecure_skip_verify": func(v value) { v.boolean(&t.InsecureSkipVerify) },
	})
}

// sslFields are the same in the words of Python's client.
func sslFields(t *TLS) fields {
	return fields{
		"ssl_ca_certs": func(v value) { v.text(&t.CAFile, pathForm, nil) },
		"ssl_certfile": func(v value) { v.text(&t.CertFile, pathForm, nil) },
		"ssl_keyfile":  func(v value) { v.text(&t.KeyFile, pathForm, nil) },
		"ssl_cert_reqs": func(v value) {
			// For a client, Python's "optional" verifies as "required" does.
			oneOf(v, &t.InsecureSkipVerify, map[string]bool{"none": true, "optional": false, "required": false})
		},
		"ssl_check_hostname": func(v value) {
			check := true
			if v.boolean(&check); !check { // host names are checked all the same
				v.d.ignored = append(v.d.ignored, v.key)
			}
		},
	}
}

const urlForm = "write redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://… or unix:///PATH/OF/SOCKET[?db=DB]"

// redisURL parses a URL. The parser's own error would show the URL, and the
// password in it.
func (v value) redisURL(into **url.URL) {
	s, ok := v.scalar(urlForm, "!!str")
	if !ok {
		return
	}
	u, err := url.Parse(s)
	if err != nil {
		v.fail("is not a URL (not shown: it may hold a password; special characters in it are written %XX)", urlForm)
		return
	}
	*into = u
}

// applyURL takes a URL apart. Its errors show nothing of it.
func (k *redisKeys) applyURL(r *Redis) error {
	if k.host != "localhost" || k.port != defaultRedisPort || k.socket != "" || k.sentinels != nil || k.nodes != nil {
		return errors.New("is set beside host, port, unix_socket_path, sentinel_addrs or cluster_addrs, which it would decide")
	}
	u := k.url
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query) > 1 || len(query) == 1 && !query.Has("db") || u.Fragment != "" || u.Opaque != "" {
		return errors.New("has parts that are not known")
	}
	r.Username = u.User.Username()
	r.Password, _ = u.User.Password()
	db := query.Get("db")
	switch u.Scheme {
	case "unix":
		r.Network, r.Address = "unix", u.Path
		if u.Host != "" || u.Path == "" {
			return errors.New("has no absolute path of a socket")
		}
	case "redis", "rediss":
		if path := strings.Trim(u.Path, "/"); path != "" {
			db = path
		}
		if r.Address, err = urlAddress(u); err != nil {
			return err
		}
		if u.Scheme == "rediss" {
			r.TLS = &TLS{}
		}
	default:
		return errors.New("has an unknown scheme")
	}
	if db != "" {
		if r.DB, err = strconv.Atoi(db); err != nil || r.DB < 0 || r.DB > maxDB {
			return errors.New("has a database that is not a number")
		}
	}
	return nil
}

// urlAddress is the URL's "host:port".
func urlAddress(u *url.URL) (string, error) {
	host, port := u.Hostname(), defaultRedisPort
	if host == "" || checkHost(host) != nil {
		return "", errors.New("has no host")
	}
	if p := u.Port(); p != "" {
		var err error
		if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
			return "", errors.New("has a port that is not a number from 1 to 65535")
		}
	}
	return joinPort(host, port), nil
}
