package config

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	for _, name := range []string{EnvFile, EnvFileAlias, EnvBlock} {
		os.Unsetenv(name)
	}
	os.Exit(m.Run())
}

// sameConfig compares by the fields themselves, for a Redis prints without its password.
func sameConfig(t *testing.T, got, want *Config) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
		for i := range min(len(got.Backends), len(want.Backends)) {
			if g, w := got.Backends[i], want.Backends[i]; !reflect.DeepEqual(g, w) {
				t.Errorf("back end %d: got %v, want %v", i, g, w)
			}
		}
	}
}

func redisAt(address string) *Redis {
	return &Redis{Network: "tcp", Address: address, Timeout: time.Second}
}

// TestPythonForm: what users of the Python library have, unchanged.
func TestPythonForm(t *testing.T) {
	c, err := Parse("locks.yml", []byte(`[{type: redis, config: {host: spock, port: 8885, socket_timeout: 1}}, `+
		`{type: zookeeper, config: {hosts: localhost, port: 2181}}, {type: file}]`))
	if err != nil {
		t.Fatal(err)
	}
	path, _ := defaultFilePath()
	want := defaults()
	want.File = "locks.yml"
	want.Backends = []Backend{
		{Redis: redisAt("spock:8885")},
		{ZooKeeper: &ZooKeeper{Hosts: []string{"localhost:2181"}, Timeout: 5 * time.Second}},
		{File: &File{path}},
	}
	sameConfig(t, c, want)
}

// TestPythonDump is that list as Python's yaml.dump writes it.
func TestPythonDump(t *testing.T) {
	c, err := Parse("locks.yml", []byte("- config: {host: spock, port: 8885, socket_timeout: 0.5, db: null}\n  type: redis\n"+
		"- config:\n    auth_data:\n    - !!python/tuple [digest, 'me:pw']\n    hosts: a:1,b/locks\n    timeout: 10.0\n    use_ssl: no\n  type: zookeeper\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.File = "locks.yml"
	want.Backends = []Backend{
		{Redis: &Redis{Network: "tcp", Address: "spock:8885", Timeout: 500 * time.Millisecond}},
		{ZooKeeper: &ZooKeeper{Hosts: []string{"a:1", "b:2181"}, Chroot: "/locks", Username: "me", Password: "pw", Timeout: 10 * time.Second}},
	}
	sameConfig(t, c, want)
}

func TestMappingForm(t *testing.T) {
	c, err := Parse("/etc/x.yml", []byte(`
cluster: prod-1
node: n1
mountpoint: /mnt/locks
lock_on_open: always
no_write_permission: skip
session_ttl: 1m30s
policies: [{names: 'a/**', lock_on_open: never}]
log: {level: debug, format: json, file: /var/log/x}
backends: [{type: file, config: {path: /srv/locks}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	sameConfig(t, c, &Config{
		Cluster: "prod-1", Node: "n1", Mountpoint: "/mnt/locks", KeepIdle: time.Second, SessionTTL: 90 * time.Second,
		Policy:   Policy{LockAlways, NoWriteSkip, OnLost{}},
		Policies: []NamePolicy{{"a/**", Policy{LockNever, NoWriteSkip, OnLost{}}}},
		Log:      Log{slog.LevelDebug, "json", "/var/log/x"},
		Backends: []Backend{{File: &File{"/srv/locks"}}},
		File:     "/etc/x.yml",
	})
}

func TestRedisForms(t *testing.T) {
	tls := TLS{CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"}
	for config, want := range map[string]Redis{
		`{}`:            {Address: "localhost:6379"},
		`{host: "::1"}`: {Address: "[::1]:6379"},
		`{host: h, port: 1, db: 2, username: u, password: p}`: {Address: "h:1", DB: 2, Username: "u", Password: "p"},
		`{password: 012345}`:                       {Address: "localhost:6379", Password: "012345"},
		`{unix_socket_path: /run/r.sock}`:          {Network: "unix", Address: "/run/r.sock"},
		`{url: "redis://h"}`:                       {Address: "h:6379"},
		`{url: "redis://u:p%40q@h:7/3"}`:           {Address: "h:7", DB: 3, Username: "u", Password: "p@q"},
		`{url: "redis://:p@[::1]:7?db=4"}`:         {Address: "[::1]:7", DB: 4, Password: "p"},
		`{url: "redis://u:p@h", password: other}`:  {Address: "h:6379", Username: "u", Password: "other"},
		`{url: "rediss://h", tls: {ca_file: /ca}}`: {Address: "h:6379", TLS: &TLS{CAFile: "/ca"}},
		`{url: "unix://u:p@/run/r.sock?db=1"}`:     {Network: "unix", Address: "/run/r.sock", DB: 1, Username: "u", Password: "p"},
		`{tls: {}}`:                                {Address: "localhost:6379", TLS: &TLS{}},
		`{ssl: True, ssl_ca_certs: /ca, ssl_certfile: /cert, ssl_keyfile: /key}`: {Address: "localhost:6379", TLS: &tls},
		`{ssl: yes, ssl_cert_reqs: none}`:                                        {Address: "localhost:6379", TLS: &TLS{InsecureSkipVerify: true}},
		`{ssl: false, ssl_ca_certs: /ca}`:                                        {Address: "localhost:6379"},
		`{sentinel_addrs: "a,b:1", master_name: m, db: 2, password: p, sentinel_username: u, sentinel_password: q, tls: {}}`: {
			Sentinels: []string{"a:26379", "b:1"}, MasterName: "m", DB: 2, Password: "p", SentinelUsername: "u", SentinelPassword: "q", TLS: &TLS{}},
		`{sentinel_addrs: ["::1"], master_name: m}`:          {Sentinels: []string{"[::1]:26379"}, MasterName: "m"},
		`{cluster_addrs: [a, "b:1"]}`:                        {ClusterNodes: []string{"a:6379", "b:1"}},
		`{socket_timeout: 2, socket_connect_timeout: 250ms}`: {Address: "localhost:6379", Timeout: 2 * time.Second},
	} {
		if want.Network == "" {
			want.Network = "tcp"
		}
		if want.Timeout == 0 {
			want.Timeout = time.Second
		}
		c, err := Parse("x.yml", []byte("[{type: redis, config: "+config+"}]"))
		if err != nil {
			t.Errorf("%s: %v", config, err)
			continue
		}
		if got := *c.Backends[0].Redis; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v (password %q, TLS %+v)", config, got, got.Password, got.TLS)
		}
	}
}

func TestZooKeeperForms(t *testing.T) {
	for config, want := range map[string]ZooKeeper{
		`{}`:                               {Hosts: []string{"localhost:2181"}},
		`{port: 1}`:                        {Hosts: []string{"localhost:1"}},
		`{hosts: "a, b:2 ,[::1]:3,[::2]"}`: {Hosts: []string{"a:2181", "b:2", "[::1]:3", "[::2]:2181"}},
		`{hosts: [a, "b:2"], port: 7}`:     {Hosts: []string{"a:7", "b:2"}},
		`{hosts: "a,b/x/y/"}`:              {Hosts: []string{"a:2181", "b:2181"}, Chroot: "/x/y"},
		`{hosts: a, chroot: /x/}`:          {Hosts: []string{"a:2181"}, Chroot: "/x"},
		`{hosts: a/, chroot: /}`:           {Hosts: []string{"a:2181"}},
		`{username: u, password: "p:q"}`:   {Hosts: []string{"localhost:2181"}, Username: "u", Password: "p:q"},
	} {
		want.Timeout = 5 * time.Second
		c, err := Parse("x.yml", []byte("[{type: zookeeper, config: "+config+"}]"))
		if err != nil {
			t.Errorf("%s: %v", config, err)
			continue
		}
		if got := *c.Backends[0].ZooKeeper; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", config, got)
		}
	}
}

// TestIgnored: keys of Python's clients that mean nothing here are named, to be logged.
func TestIgnored(t *testing.T) {
	c, err := Parse("x.yml", []byte(`[{type: redis, config: {decode_responses: true, ssl_keyfile: /k}}, {type: zookeeper, config: {read_only: true}}]`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"[0].config.decode_responses", "[0].config.ssl_keyfile", "[1].config.read_only"}
	if !reflect.DeepEqual(c.Ignored, want) {
		t.Errorf("got %v", c.Ignored)
	}
}

func TestEnvironmentVariables(t *testing.T) {
	t.Setenv("LOCKFS_TEST_HOST", "spock")
	t.Setenv("LOCKFS_TEST_PORT", "8885")
	t.Setenv("LOCKFS_TEST_EMPTY", "")
	c, err := Parse("x.yml", []byte(`
session_ttl: ${LOCKFS_TEST_NONE:-20s}
backends:
  - type: redis
    config:
      host: ${LOCKFS_TEST_HOST}
      port: ${LOCKFS_TEST_PORT}
      username: a${LOCKFS_TEST_EMPTY}b
      password: $${x} $ ${LOCKFS_TEST_EMPTY:-y}
`))
	if err != nil {
		t.Fatal(err)
	}
	r := c.Backends[0].Redis
	if c.SessionTTL != 20*time.Second || r.Address != "spock:8885" || r.Username != "ab" || r.Password != "${x} $ y" {
		t.Errorf("got %v, %v, %q, %q", c.SessionTTL, r, r.Username, r.Password)
	}
}

func TestPasswordFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte(" two words \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Relative to the configuration, not to where the program runs.
	c, err := Parse(filepath.Join(dir, "x.yml"), []byte("[{type: redis, config: {password_file: pw}}]"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Backends[0].Redis.Password; got != " two words " {
		t.Errorf("got %q", got)
	}
}

func TestDefault(t *testing.T) {
	c, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	path, _ := defaultFilePath()
	want := defaults()
	want.Backends = []Backend{{Redis: redisAt("spock:8885")}, {Redis: redisAt("localhost:6379")}, {File: &File{path}}}
	sameConfig(t, c, want)
	if os.Geteuid() == 0 && path != "/var/lib/lockfs" {
		t.Errorf("as root the file back end is in %s", path)
	}
}

func TestLookUpOrder(t *testing.T) {
	system := filepath.Join(t.TempDir(), "lockfs.yml")
	check := func(argument, want string) {
		t.Helper()
		if got := find(argument, system); got != want {
			t.Errorf("find(%q) = %q, want %q", argument, got, want)
		}
	}
	check("", "")
	if err := os.WriteFile(system, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("", system)
	t.Setenv(EnvFileAlias, "/second")
	check("", "/second")
	t.Setenv(EnvFile, "/first")
	check("", "/first")
	check("/argument", "/argument")
}

func TestOptionsWinOverTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yml")
	err := os.WriteFile(file, []byte("cluster: a\npolicies: [{names: x, no_write_permission: skip}]\nbackends: [{type: file}]\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(file, Option{"cluster", "b"}, Option{"lock_on_open", "never"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Cluster != "b" || c.For("x") != (Policy{LockNever, NoWriteSkip, OnLost{}}) || c.For("y") != (Policy{LockNever, NoWriteLock, OnLost{}}) {
		t.Errorf("got %+v", c)
	}
	_, err = Load(file, Option{"lock_on_open", "sometimes"}, Option{"clustr", "b"})
	want := "-o: lock_on_open: \"sometimes\" is not known; write always, auto or never\n" +
		"-o: clustr: unknown option; did you mean cluster?"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestUnreadableFile(t *testing.T) {
	for _, file := range []string{"/no/such/file.yml", t.TempDir(), "/dev/zero"} {
		_, err := Load(file)
		if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestBlocked(t *testing.T) {
	if Blocked() {
		t.Error("blocked without the variable")
	}
	t.Setenv(EnvBlock, "1")
	if !Blocked() {
		t.Error("not blocked")
	}
}

// TestSecretsAreNotPrinted prints a whole configuration in every way there is.
func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := Parse("x.yml", []byte(`[{type: redis, config: {url: "redis://u:hunter2@h"}}, {type: redis, config: {sentinel_addrs: a, master_name: m, sentinel_password: hunter2}}, {type: zookeeper, config: {username: u, password: hunter2}}]`))
	if err != nil {
		t.Fatal(err)
	}
	r, s, z := c.Backends[0].Redis, c.Backends[1].Redis, c.Backends[2].ZooKeeper
	if r.Password != "hunter2" || s.SentinelPassword != "hunter2" || z.Password != "hunter2" {
		t.Fatalf("the passwords are %q and %q", r.Password, z.Password)
	}
	var out strings.Builder
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("x", "config", c, "backend", c.Backends[0], "redis", r, "sentinels", s, "zookeeper", z, "values", []any{*r, *s, *z}, "all", c.Backends)
	}
	for _, thing := range []any{c, *c, c.Backends, c.Backends[0], c.Backends[1], c.Backends[2], r, *r, s, *s, z, *z} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			out.WriteString(sprintf(verb, thing))
		}
		data, err := json.Marshal(thing)
		if err != nil {
			t.Error(err)
		}
		out.Write(data)
	}
	hex := "68756e74657232"
	if s := out.String(); strings.Contains(s, "hunter2") || strings.Contains(s, hex) {
		t.Errorf("the password is in\n%s", s)
	}
}
