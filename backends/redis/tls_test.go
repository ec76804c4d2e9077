package redis

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lockfs/backends"
	"lockfs/backends/testserver"
	"lockfs/config"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert, a.key, a.file = a.write("ca", template, nil, nil)
	return a
}

// issue makes a certificate for names and addresses; it returns the files.
func (a *authority) issue(name string, names ...string) (cert, key string) {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	_, _, cert = a.write(name, template, a.cert, a.key)
	return cert, filepath.Join(a.dir, name+".key")
}

// write makes key and certificate; without a parent it signs itself.
func (a *authority) write(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, signer = template, key
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	file := filepath.Join(a.dir, name)
	for path, block := range map[string]*pem.Block{file + ".pem": {Type: "CERTIFICATE", Bytes: der}, file + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key, file + ".pem"
}

// secured are the options of a server that speaks TLS alone with those whose certificate the authority has
// signed, on a port that is free.
func secured(t *testing.T, a *authority, names ...string) (port string, args []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	cert, key := a.issue("server", names...)
	return port, []string{"--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", a.file, "--tls-auth-clients", "yes"}
}

// TestTLS: a server and its nodes that know each other by the certificates of a private authority.
func TestTLS(t *testing.T) {
	own, strange := newAuthority(t), newAuthority(t)
	port, args := secured(t, own, "127.0.0.1", "redis.test")
	testserver.Redis(t, args...)
	cert, key := own.issue("node")
	strangeCert, strangeKey := strange.issue("node")
	for what, row := range map[string]struct {
		tls  *config.TLS
		kind error // where it does not work; nil: that depends on which of the server's last words arrive
		says string
	}{
		"as it should be":       {tls: &config.TLS{CAFile: own.file, CertFile: cert, KeyFile: key}},
		"under another name":    {tls: &config.TLS{CAFile: own.file, CertFile: cert, KeyFile: key, ServerName: "redis.test"}},
		"nothing verified":      {tls: &config.TLS{CAFile: strange.file, CertFile: cert, KeyFile: key, InsecureSkipVerify: true}},
		"the wrong name":        {&config.TLS{CAFile: own.file, CertFile: cert, KeyFile: key, ServerName: "other.test"}, backends.ErrForeign, "other.test"},
		"the wrong authority":   {&config.TLS{CAFile: strange.file, CertFile: cert, KeyFile: key}, backends.ErrForeign, "authority"},
		"system's authorities":  {&config.TLS{CertFile: cert, KeyFile: key}, backends.ErrForeign, "authority"},
		"no certificate":        {&config.TLS{CAFile: own.file}, nil, "certificate"},
		"a strange certificate": {&config.TLS{CAFile: own.file, CertFile: strangeCert, KeyFile: strangeKey}, nil, "certificate"},
		"without TLS":           {nil, backends.ErrUnavailable, "may want TLS"},
	} {
		t.Run(what, func(t *testing.T) {
			b, err := Open(t.Context(), config.Redis{Network: "tcp", Address: "127.0.0.1:" + port, TLS: row.tls, Timeout: 2 * time.Second}, "test", nil)
			if row.says != "" {
				if err == nil {
					_ = b.Close()
					t.Fatal("it works")
				}
				if row.kind != nil && !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) {
					t.Errorf("%v; want %q and %v", err, row.says, row.kind)
				}
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			s := openOn(t, b, time.Minute)
			drop(t, s, "x", acquire(t, s, "x", writing))
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := Open(t.Context(), config.Redis{Network: "tcp", Address: "127.0.0.1:" + port, TLS: &config.TLS{CAFile: key}}, "test", nil); err == nil || !strings.Contains(err.Error(), key) {
		t.Errorf("a CA file that holds no certificate: %v", err)
	}
}

// TestTLSByGuide: the same where the server is named by others.
func TestTLSByGuide(t *testing.T) {
	own, strange := newAuthority(t), newAuthority(t)
	port, args := secured(t, own, "127.0.0.1")
	server := testserver.Redis(t, append(args, "--tls-cluster", "yes", "--cluster-enabled", "yes")...)
	server.Command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	testserver.Within(t, 10*time.Second, "the cluster of one is there", func() bool {
		return strings.Contains(server.Command("CLUSTER", "INFO"), "cluster_state:ok")
	})
	cert, key := own.issue("node")
	conf := config.Redis{ClusterNodes: []string{"127.0.0.1:" + port}, TLS: &config.TLS{CAFile: own.file, CertFile: cert, KeyFile: key}}
	s := openBy(t, conf, 2*time.Second)
	if got := asked(t, s, "x"); received(t, 10*time.Second, "the lock after the grace period", got).ID == "" {
		t.Error("no lock")
	}
	conf.Network, conf.Timeout, conf.TLS = "tcp", time.Second, &config.TLS{CAFile: strange.file, CertFile: cert, KeyFile: key}
	if b, err := Open(t.Context(), conf, "test", nil); err == nil {
		_ = b.Close()
		t.Error("the wrong authority is believed")
	} else {
		t.Log(err)
	}
}
