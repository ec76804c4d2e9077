package config

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

func readExample(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("lockfs.example.yml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// commentedKey is a key that is commented out; prose has a space behind the #.
var commentedKey = regexp.MustCompile(`(?m)^( *)#([^ #\n].*)$`)

func TestExampleAsShipped(t *testing.T) {
	c, err := Parse("lockfs.example.yml", []byte(readExample(t)))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := Parse("x.yml", []byte("[{type: redis}]"))
	want.File = c.File
	sameConfig(t, c, want)
}

// TestExampleUncommented also holds the example to the defaults that it names.
func TestExampleUncommented(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LOCKFS_PASSWORD_FILE", secret)
	text := commentedKey.ReplaceAllString(readExample(t), "$1$2")
	c, err := Parse("lockfs.example.yml", []byte(text))
	if err != nil {
		t.Fatalf("uncommented:\n%v", err)
	}
	if len(c.Backends) != 7 || len(c.Policies) != 3 {
		t.Errorf("%d back ends, %d policies", len(c.Backends), len(c.Policies))
	}
	if got := c.Backends[1].Redis; got.Password != "from a file" || got.TLS == nil || got.DB != 1 {
		t.Errorf("by URL: %v, TLS %v", got, got.TLS)
	}
	d := defaults()
	if c.Cluster != d.Cluster || c.SessionTTL != d.SessionTTL || c.Policy != d.Policy ||
		c.Log.Level != d.Log.Level || c.Log.Format != d.Log.Format ||
		c.Backends[0].Redis.Timeout != defaultRedisTimeout || c.Backends[5].ZooKeeper.Timeout != 5*time.Second {
		t.Errorf("the example names a default that isn't one: %+v", c)
	}
}

// TestExampleHasEveryKey asks the decoder itself for its keys.
func TestExampleHasEveryKey(t *testing.T) {
	text := readExample(t)
	var decode func(value) Backend
	var config value
	for group, known := range map[string]fields{
		"top":       topFields(&draft{Config: &Config{}}),
		"policies":  policyFields(&draft{}, &draftPolicy{}),
		"log":       logFields(&Log{}),
		"backends":  backendFields(&decode, &config),
		"redis":     redisFields(&redisKeys{}),
		"tls":       tlsFields(&TLS{}),
		"zookeeper": zookeeperFields(&zookeeperKeys{}),
		"file":      fileFields(&File{}),
	} {
		for key := range known {
			if !regexp.MustCompile(`\b` + key + `\b`).MatchString(text) {
				t.Errorf("%s: the example does not have %s", group, key)
			}
		}
	}
}
