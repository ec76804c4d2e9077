package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sprintf(verb string, thing any) string { return fmt.Sprintf(verb, thing) }

const (
	fileBackend = "\nbackends: [{type: file, config: {path: /x}}]"
	timeoutForm = "write a duration such as 15s or 2m, from 10ms to 5m"
	ttlForm     = "write a duration such as 15s or 2m, from 2s to 5m"
)

// TestMessages: what is refused, and in which words. "%" stands for the file.
func TestMessages(t *testing.T) {
	redis := func(config string) string { return "- type: redis\n  config: " + config }
	zookeeper := func(config string) string { return "- type: zookeeper\n  config: " + config }
	for _, test := range []struct{ in, want string }{
		{"", "%:1: is empty; write backends: [{type: file}], or more"},
		{"# only prose\n", "%:1: is empty; write backends: [{type: file}], or more"},
		{"just text", "%:1: is text; write a mapping (cluster: …, backends: …) or a list of back ends"},
		{"cluster: x", "%:1: backends is missing; write backends: [{type: redis, config: {host: HOST, port: PORT}}]"},
		{"[]", "%:1: names no back end; write at least one: - " + backendForm},
		{"backends: 7", "%:1: backends: is a number; write a list: - " + backendForm},
		{"cluster: x\n---\ncluster: y", "%:2: a second document begins; keep one"},
		{"cluster: [x" + fileBackend, "%:2: not YAML: did not find expected ',' or ']'; look for a missing space, quote or bracket here or above"},
		{"clutser: x" + fileBackend, `%:1: unknown key "clutser"; did you mean cluster?`},
		{"\n\nlock-on-open: auto" + fileBackend, `%:3: unknown key "lock-on-open"; did you mean lock_on_open?`},
		{"frobnicate: eio" + fileBackend, `%:1: unknown key "frobnicate"; known are backends, cluster, keep_idle, lock_delay, lock_on_open, log, mountpoint, no_write_permission, node, on_lost, policies, session_ttl`},
		{"cluster: a\ncluster: b" + fileBackend, `%:2: "cluster" is already set in line 1; keep one of the two`},
		{"[a]: b" + fileBackend, "%:1: a key is not text; write a mapping (cluster: …, backends: …) or a list of back ends"},
		{"cluster:" + fileBackend, "%:1: cluster: is empty; write 1 to 64 of the characters a-z A-Z 0-9 . _ -, the first no dot"},
		{"cluster: ''" + fileBackend, "%:1: cluster: is empty; write 1 to 64 of the characters a-z A-Z 0-9 . _ -, the first no dot"},
		{"cluster: a/b" + fileBackend, `%:1: cluster: "a/b" has a character that is not allowed; write 1 to 64 of the characters a-z A-Z 0-9 . _ -, the first no dot`},
		{"node: a b" + fileBackend, `%:1: node: "a b" has a character that is not allowed; write 1 to 128 printable characters without spaces`},
		{"mountpoint: mnt" + fileBackend, `%:1: mountpoint: "mnt" is not an absolute path; write an absolute path`},
		{"session_ttl: 15" + fileBackend, `%:1: session_ttl: "15" has no unit; ` + ttlForm},
		{"session_ttl: 15x" + fileBackend, `%:1: session_ttl: "15x" is not a duration; ` + ttlForm},
		{"session_ttl: 1s" + fileBackend, `%:1: session_ttl: "1s" is out of range; ` + ttlForm},
		{"session_ttl: 6m" + fileBackend, `%:1: session_ttl: "6m" is out of range; ` + ttlForm},
		{"session_ttl: [1s]" + fileBackend, "%:1: session_ttl: is a list; " + ttlForm},
		{"lock_on_open: sometimes" + fileBackend, `%:1: lock_on_open: "sometimes" is not known; write always, auto or never`},
		{"no_write_permission: true" + fileBackend, "%:1: no_write_permission: is a truth value; write lock or skip"},
		{"log: {level: loud}" + fileBackend, `%:1: log.level: "loud" is not known; write debug, error, info or warn`},
		{"log: {format: xml, file: x}" + fileBackend, "%:1: log.format: \"xml\" is not known; write json or text\n%:1: log.file: \"x\" is not an absolute path; write an absolute path"},
		{"policies: [{lock_on_open: auto}]" + fileBackend, "%:1: policies[0]: has no names; write {names: PATTERN, lock_on_open: …}"},
		{"policies:\n - names: 'a/[b'" + fileBackend, `%:2: policies[0].names: "a/[b" has a bracket or backslash that is not closed; write a pattern such as 'etl/*' or '**/*.lck'`},
		{"policies:\n - names: /a" + fileBackend, `%:2: policies[0].names: "/a" has an empty, "." or ".." component; write a pattern such as 'etl/*' or '**/*.lck'`},
		{"policies:\n - names: a**/b" + fileBackend, `%:2: policies[0].names: "a**/b" has "**" beside other characters; write a pattern such as 'etl/*' or '**/*.lck'`},
		{"- config: {}", "%:1: [0]: has no type; " + backendForm},
		{"- type: etcd", `%:1: [0].type: "etcd" is not known; write file, redis or zookeeper`},
		{"- type: redis\n  host: h", `%:2: [0]: unknown key "host"; known are config, type`},
		{redis("{hots: h}"), `%:2: [0].config: unknown key "hots"; did you mean host?`},
		{redis("{host: 'h:1'}"), `%:2: [0].config.host: "h:1" has a port in it; write a host name or an address, and port: beside it`},
		{redis("{host: 7}"), "%:2: [0].config.host: is a number; write a host name or an address, and port: beside it"},
		{redis("{port: '8885'}"), "%:2: [0].config.port: is text; write a whole number from 1 to 65535"},
		{redis("{port: 70000}"), `%:2: [0].config.port: "70000" is not a whole number in range; write a whole number from 1 to 65535`},
		{redis("{port: 1.5}"), "%:2: [0].config.port: is a number; write a whole number from 1 to 65535"},
		{redis("{socket_timeout: .nan}"), `%:2: [0].config.socket_timeout: ".nan" is not a duration; ` + timeoutForm},
		{redis("{socket_timeout: -1}"), `%:2: [0].config.socket_timeout: "-1" is out of range; ` + timeoutForm},
		{redis("{socket_timeout: 1e30}"), `%:2: [0].config.socket_timeout: "1e30" is out of range; ` + timeoutForm},
		{redis("{ssl: maybe}"), `%:2: [0].config.ssl: "maybe" is not a truth value; write true or false`},
		{redis("{url: 'http://h'}"), "%:2: [0].config.url: has an unknown scheme; " + urlForm},
		{redis("{url: 'redis://h/x'}"), "%:2: [0].config.url: has a database that is not a number; " + urlForm},
		{redis("{url: 'redis://h?x=1'}"), "%:2: [0].config.url: has parts that are not known; " + urlForm},
		{redis("{url: 'redis://h', host: h}"), "%:2: [0].config.url: is set beside host, port, unix_socket_path, sentinel_addrs or cluster_addrs, which it would decide; " + urlForm},
		{redis("{sentinel_addrs: [], master_name: m}"), "%:2: [0].config.sentinel_addrs: is empty; " + serversForm},
		{redis("{sentinel_addrs: [a], master_name: ''}"), "%:2: [0].config.master_name: is empty; " + masterForm + "\n%:2: [0].config.sentinel_addrs: is set without master_name; " + masterForm},
		{redis("{sentinel_addrs: 'a,b:x', master_name: m}"), `%:2: [0].config.sentinel_addrs: "a,b:x" has a port that is not a number from 1 to 65535; ` + serversForm},
		{redis("{sentinel_addrs: [a, 'a:26379'], master_name: m}"), `%:2: [0].config.sentinel_addrs[1]: "a:26379" names a host twice; ` + serversForm},
		{redis("{sentinel_addrs: [a], master_name: m, host: h}"), "%:2: [0].config.sentinel_addrs: is set beside another server; " + oneWayForm},
		{redis("{sentinel_addrs: [a], master_name: m, cluster_addrs: b}"), "%:2: [0].config.sentinel_addrs: is set beside another server; " + oneWayForm},
		{redis("{master_name: m}"), "%:2: [0].config.master_name: is set without sentinel_addrs; name the Sentinels too"},
		{redis("{sentinel_password: p}"), "%:2: [0].config.sentinel_password: is set without sentinel_addrs; name the Sentinels too"},
		{redis("{cluster_addrs: a, db: 1}"), "%:2: [0].config.db: is not 0; a Redis Cluster has no other databases"},
		{redis("{cluster_addrs: a, unix_socket_path: /s}"), "%:2: [0].config.cluster_addrs: is set beside another server; " + oneWayForm},
		{redis("{password: ${LOCKFS_TEST_UNSET"), "%:2: not YAML: did not find expected ',' or '}'; look for a missing space, quote or bracket here or above"},
		{redis("\n    password: ${LOCKFS_TEST_UNSET}"), "%:3: [0].config.password: environment variable LOCKFS_TEST_UNSET is not set; set it, or write ${LOCKFS_TEST_UNSET:-default}"},
		{redis("\n    host: ${1X}"), "%:3: [0].config.host: ${ is not followed by a variable's name and }; write ${NAME} or ${NAME:-default}, or $${ for the characters themselves"},
		{redis("{password_file: /no/such}"), "%:2: [0].config.password_file: can't be read: open /no/such: no such file or directory; name a readable file that holds the password"},
		{zookeeper("{hosts: ''}"), `%:2: [0].config.hosts: "" has an empty host; write host or host:port, several in a list or with commas between`},
		{zookeeper("{hosts: []}"), "%:2: [0].config.hosts: is empty; write host or host:port, several in a list or with commas between"},
		{zookeeper("{hosts: 'a:b'}"), `%:2: [0].config.hosts: "a:b" has a port that is not a number from 1 to 65535; write host or host:port, several in a list or with commas between`},
		{zookeeper("{hosts: [a, 7]}"), "%:2: [0].config.hosts[1]: is a number; write host or host:port, several in a list or with commas between"},
		{zookeeper("{chroot: a}"), `%:2: [0].config.chroot: "a" does not begin with a slash; write a path such as /lockfs`},
		{zookeeper("{hosts: a/x, chroot: /y}"), "%:2: [0].config.hosts: has another path behind the hosts than chroot or the host before; keep one of them"},
		{zookeeper("{use_ssl: true}"), "%:2: [0].config.use_ssl: TLS to ZooKeeper is not supported; leave it out, and go through a tunnel where the network is not trusted"},
		{zookeeper("{username: u}"), "%:2: [0].config.username: is set without password; set both for digest authentication"},
		{"- {type: file, config: {path: x}}", `%:1: [0].config.path: "x" is not an absolute path; write an absolute path`},
		// All faults at once, in the order of the file.
		{"cluster: a/b\nsesion_ttl: 1s\nbackends:\n  - type: redis\n    config: {port: x, db: -1}\n  - type: fil", `%:1: cluster: "a/b" has a character that is not allowed; write 1 to 64 of the characters a-z A-Z 0-9 . _ -, the first no dot
%:2: unknown key "sesion_ttl"; did you mean session_ttl?
%:5: backends[0].config.port: is text; write a whole number from 1 to 65535
%:5: backends[0].config.db: "-1" is not a whole number in range; write a whole number from 0 to 2147483647
%:6: backends[1].type: "fil" is not known; write file, redis or zookeeper`},
	} {
		_, err := Parse("dir/f.yml", []byte(test.in))
		want := strings.ReplaceAll("\n"+test.want, "\n%", "\ndir/f.yml")[1:]
		if err == nil {
			t.Errorf("%q: accepted; want %s", test.in, want)
		} else if err.Error() != want {
			t.Errorf("%q:\ngot  %s\nwant %s", test.in, err, want)
		}
	}
}

// TestErrorsHideSecrets: no fault in or near a password shows it.
func TestErrorsHideSecrets(t *testing.T) {
	t.Setenv("LOCKFS_TEST_SECRET", "hunter2")
	for _, config := range []string{
		`{url: "redis://u:hunter2@h:x"}`,
		`{url: "redis://u:hunter2%@h"}`,
		`{url: "redis://u:hunter2@"}`,
		`{url: "http://u:hunter2@h"}`,
		`{url: "redis://u:hunter2@h/a b"}`,
		`{url: "hunter2"}`,
		`{url: ["redis://u:hunter2@h"]}`,
		`{host: "redis://u:hunter2@h"}`,
		`{host: "u:hunter2@h"}`,
		`{"redis://u:hunter2@h": 1}`,
		`{port: "${LOCKFS_TEST_SECRET}"}`,
		`{host: "${LOCKFS_TEST_SECRET}/"}`,
		`{password: [hunter2]}`,
		`{password: true, db: hunter2@}`,
		`{password: *hunter2}`,
		`{password: "${A hunter2}"}`,
		`{password: 'hunter2`,
		`{password: hunter2, password: hunter2}`,
		`{password: hunter2, password_file: x}`,
	} {
		_, err := Parse("f.yml", []byte("[{type: redis, config: "+config+"}]"))
		if err == nil {
			t.Errorf("%s: accepted", config)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: shown in: %v", config, err)
		}
	}
	for _, config := range []string{
		`{auth_data: [[sasl, "u:hunter2"]]}`, `{auth_data: "digest:hunter2"}`, `{auth_data: [[digest, hunter2]]}`,
		`{password: hunter2}`, `{hosts: "u:hunter2@h"}`,
	} {
		_, err := Parse("f.yml", []byte("[{type: zookeeper, config: "+config+"}]"))
		if err == nil {
			t.Errorf("%s: accepted", config)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: shown in: %v", config, err)
		}
	}
}

// FuzzParse: never a panic, and each error is ours: it begins with the file's name.
func FuzzParse(f *testing.F) {
	if example, err := os.ReadFile("lockfs.example.yml"); err == nil {
		f.Add(string(example))
		f.Add(commentedKey.ReplaceAllString(string(example), "$1$2"))
	}
	f.Add(`[{type: redis, config: {host: spock, port: 8885, socket_timeout: 1}}, {type: zookeeper, config: {hosts: "a:1,b/c", port: 2181}}, {type: file}]`)
	f.Add("a: &a [*a]\nbackends: *a\n<<: *a")
	f.Add("- &x {type: redis, config: {url: 'rediss://u:p@h:1/2', auth_data: [[digest, 'u:p']]}}\n- *x")
	f.Add("policies: [{names: '**/[a-z]/*'}]\nsession_ttl: ${X:-1s}\n--- x")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "f.yml")
		c, err := Parse(file, []byte(text))
		if err == nil {
			if len(c.Backends) == 0 {
				t.Error("accepted without a back end")
			}
			c.For("a/b/c")
			return
		}
		if !strings.HasPrefix(err.Error(), file+":") {
			t.Errorf("error is %v", err)
		}
	})
}
