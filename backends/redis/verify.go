package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
	"lockfs/config"
)

// The oldest server that has all commands the scripts use (HRANDFIELD).
const minMajor, minMinor = 6, 2

// verify checks that the server can be used.
func (b *Backend) verify(ctx context.Context, client *goredis.Client) error {
	text, err := client.Info(ctx).Result()
	if err != nil {
		return withWayOut(failure(err))
	}
	info := parseInfo(text)
	if err := b.usable(info); err != nil {
		return err
	}
	if policy := info["maxmemory_policy"]; info["maxmemory"] != "0" && strings.HasPrefix(policy, "allkeys-") {
		b.log.Warn("Redis may evict locks when its memory is full; set maxmemory-policy to noeviction or volatile-*",
			"backend", b.where, "maxmemory-policy", policy)
	}
	return withWayOut(b.probe(ctx, client))
}

// withWayOut says what to do about a refusal. Redis's own texts name no secret.
func withWayOut(err error) error {
	switch {
	case err == nil, errors.Is(err, errNoMaster): // the latter says it
		return err
	case goredis.HasErrorPrefix(err, "WRONGPASS"), goredis.HasErrorPrefix(err, "NOAUTH"):
		return fmt.Errorf("%w (check username and password)", err)
	case goredis.HasErrorPrefix(err, "READONLY"):
		return fmt.Errorf("%w: it is a read-only replica; point lockfs at the master", backends.ErrRefused)
	case goredis.HasErrorPrefix(err, "MISCONF"):
		return fmt.Errorf("%w: it can't write to its disk; free space there: %v", backends.ErrRefused, err)
	case errors.Is(err, backends.ErrRefused):
		return fmt.Errorf("%w (the user needs INFO, EVALSHA, EVAL, SUBSCRIBE and PUBLISH, all data commands, keys and channels lockfs:*; CLUSTER in a Redis Cluster)", err)
	}
	return err
}

// withTLSHint says what may be behind a server that hangs up in the middle of the first words.
func withTLSHint(err error, secured bool) error {
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) {
		return err
	}
	if secured {
		return fmt.Errorf("%w (it may want another certificate from us, or no TLS at all)", err)
	}
	return fmt.Errorf("%w (it may want TLS)", err)
}

// withoutSecret leaves out the text of an error that has the password in it:
// a server that is no Redis may answer with what it was sent.
func withoutSecret(err error, password string) error {
	if password == "" || !strings.Contains(err.Error(), password) {
		return err
	}
	for _, kind := range []error{backends.ErrRefused, backends.ErrForeign} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%w (its answer is not shown, it contains the password)", kind)
		}
	}
	return fmt.Errorf("%w (the reason is not shown, it contains the password)", backends.ErrUnavailable)
}

// usable judges by what the server says of itself.
func (b *Backend) usable(info map[string]string) error {
	version := info["redis_version"]
	switch {
	case version == "":
		return fmt.Errorf("%w: it names no redis_version", backends.ErrForeign)
	case !newEnough(version):
		return fmt.Errorf("%w: it is Redis %s, lockfs needs %d.%d or newer", backends.ErrForeign, version, minMajor, minMinor)
	case info["redis_mode"] == "sentinel":
		return fmt.Errorf("%w: it is a Sentinel; name it by sentinel_addrs, with master_name", backends.ErrForeign)
	case info["redis_mode"] == "cluster" && b.guide == nil:
		return fmt.Errorf("%w: it is a node of a Redis Cluster; name it, and some more of its nodes, by cluster_addrs", backends.ErrForeign)
	case info["role"] != "master" && b.guide != nil:
		return fmt.Errorf("%w: %s name a replica as the master", backends.ErrUnavailable, b.guide.what) // a fail-over is under way
	case info["role"] != "master":
		return fmt.Errorf("%w: it is a replica; point lockfs at the master", backends.ErrRefused)
	}
	return nil
}

func newEnough(version string) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (major > minMajor || major == minMajor && minor >= minMinor)
}

// parseInfo reads the lines "key:value" of INFO.
func parseInfo(text string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[key] = value
		}
	}
	return info
}

// probe checks that we may write and publish, in the way that the scripts do.
func (b *Backend) probe(ctx context.Context, client *goredis.Client) error {
	const text = `redis.call('SET', KEYS[1] .. 'probe', '1', 'PX', 1000)
redis.call('PUBLISH', KEYS[1] .. 'c:probe', '1')
return redis.call('DEL', KEYS[1] .. 'probe')`
	if err := client.Eval(ctx, text, b.keys).Err(); err != nil {
		return failure(err)
	}
	return nil
}

func tlsConfig(conf *config.TLS) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: conf.ServerName, InsecureSkipVerify: conf.InsecureSkipVerify}
	if conf.CAFile != "" {
		pem, err := os.ReadFile(conf.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the CA file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %s holds no certificate in PEM form", conf.CAFile)
		}
	}
	if conf.CertFile != "" || conf.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(conf.CertFile, conf.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate %s and its key: %w", conf.CertFile, err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}
