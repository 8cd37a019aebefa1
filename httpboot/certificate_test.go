package httpboot

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/nettest"
)

func TestCertificates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	load := func(addr string) (tls.Certificate, []byte) {
		t.Helper()
		a := netip.MustParseAddr(addr)
		cert, ca, err := LoadOrMakeCertificate(dir, a)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(ca) {
			t.Fatalf("no CA in %q", ca)
		}
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: addr, Roots: roots}); err != nil {
			t.Fatal(err)
		}
		if len(cert.Certificate) != 2 {
			t.Errorf("%d certificates in the chain; iPXE needs the CA's too", len(cert.Certificate))
		}
		return cert, ca
	}
	same := func(a, b tls.Certificate) bool { return bytes.Equal(a.Certificate[0], b.Certificate[0]) }

	first, ca := load("10.77.0.1")
	again, caAgain := load("10.77.0.1")
	if !same(first, again) || !bytes.Equal(ca, caAgain) {
		t.Error("made anew without need")
	}
	if other, otherCA := load("fd00::1"); same(first, other) || !bytes.Equal(ca, otherCA) {
		t.Error("another address needs another certificate of the same CA")
	}
	for name, mode := range map[string]os.FileMode{"": 0o700 | os.ModeDir, "ca.pem": 0o600, "ca.crt": 0o644, "10.77.0.1.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%q: mode %v, %v", name, info.Mode(), err)
		}
	}
	if made, _ := filepath.Glob(filepath.Join(dir, "*")); len(made) != 4 {
		t.Errorf("files: %q", made)
	}

	// One that is near its end.
	authority, err := loadPair(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := sign(&x509.Certificate{Subject: first.Leaf.Subject, IPAddresses: first.Leaf.IPAddresses, NotAfter: time.Now().Add(leafLife/2 - time.Hour)}, &authority)
	if err != nil {
		t.Fatal(err)
	}
	leaf := filepath.Join(dir, "10.77.0.1.pem")
	if err := os.WriteFile(leaf, encodePair(old), 0o600); err != nil {
		t.Fatal(err)
	}
	if renewed, _ := load("10.77.0.1"); same(renewed, old) {
		t.Error("not renewed")
	}

	// A new CA makes its own certificates.
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	if _, newCA := load("10.77.0.1"); bytes.Equal(ca, newCA) {
		t.Error("the CA is still the old one")
	}

	// What cannot be read is not replaced.
	for _, name := range []string{"10.77.0.1.pem", "ca.pem"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := LoadOrMakeCertificate(dir, addr); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if data, _ := os.ReadFile(path); string(data) != "torn" {
			t.Errorf("%s was replaced", name)
		}
	}
}

// TestCurlOverTLS fetches with the key exchanges of today and of old iPXEs.
func TestCurlOverTLS(t *testing.T) {
	nettest.Need(t, "curl")
	at, host := segment(t)
	dir := t.TempDir()
	cert, ca, err := LoadOrMakeCertificate(dir, at)
	if err != nil {
		t.Fatal(err)
	}
	if len(ca) == 0 {
		t.Fatal("no CA")
	}
	inv := inventory(t)
	events, stop := start(t, Config{Addr: at, Interface: "br0", Certificate: &cert, TLSPort: 8443, Files: files, Inventory: func() *boot.Inventory { return inv }})
	curl := func(args ...string) string {
		t.Helper()
		return host.Run(t, "curl", append([]string{"-sSf", "--cacert", filepath.Join(dir, "ca.crt")}, args...)...)
	}
	const base = "https://10.78.0.1:8443"
	for _, how := range []string{"--tlsv1.3", "--tls-max 1.2", "--tls-max 1.2 --ciphers AES128-SHA", "--tls-max 1.2 --ciphers AES256-SHA"} {
		to := filepath.Join(t.TempDir(), "vmlinuz")
		curl(append(strings.Fields(how), "-o", to, base+"/profile/default/vmlinuz")...)
		if sumOf(t, to) != sum(pattern(kernelSize)) {
			t.Errorf("%s: arrived damaged", how)
		}
		events.ended()
	}
	to := filepath.Join(t.TempDir(), "snponly.efi")
	if err := os.WriteFile(to, pattern(nbpSize)[:1000], 0o644); err != nil {
		t.Fatal(err)
	}
	curl("-C", "-", "-o", to, base+"//snponly.efi")
	if end := events.ended(); sumOf(t, to) != sum(pattern(nbpSize)) || end.Bytes != nbpSize-1000 {
		t.Errorf("resumed with %+v", end)
	}
	// The files come the way the script came; the booted system does not know
	// the certificate.
	script := curl(base + boot.ScriptPath(mac))
	for _, want := range []string{"kernel " + base + "/profile/", "initrd --name initramfs.zst " + base + "/profile/", "imgfetch --name report " + base + "/failed/", "ecboot.url=http://10.78.0.1/phone-home/"} {
		if !strings.Contains(script, want) {
			t.Errorf("the script lacks %q:\n%s", want, script)
		}
	}
	if script := host.Run(t, "curl", "-sSf", "http://10.78.0.1"+boot.ScriptPath(mac)); strings.Contains(script, "kernel https:") {
		t.Errorf("over HTTP:\n%s", script)
	}
	stop()
}
