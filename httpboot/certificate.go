package httpboot

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// How long certificates are good for. A server's is made anew when ecboot
// starts and less than half of its time is left.
const (
	caLife   = 20 * 365 * 24 * time.Hour
	leafLife = 4 * 365 * 24 * time.Hour
	keyBits  = 2048
)

// notBefore lies in the past for every machine, those whose clock's battery is
// dead included.
var notBefore = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// LoadOrMakeCertificate returns a certificate for the server at addr and the CA
// that signed it, which clients must trust. Both are kept in dir: the CA in
// ca.pem, with its key, and in ca.crt, without, for those who build an iPXE.
// What is missing is made; the certificate is replaced when it is for other
// addresses, of another CA, or near its end. All keys are RSA: iPXE knows no
// others. The certificate comes with the CA's behind it, because an iPXE that
// trusts a CA has only its fingerprint.
func LoadOrMakeCertificate(dir string, addr netip.Addr) (cert tls.Certificate, caPEM []byte, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cert, nil, fmt.Errorf("certificates: %w", err)
	}
	ca, err := loadOrMakeCA(dir)
	if err != nil {
		return cert, nil, err
	}
	caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Leaf.Raw})
	if err := replaceFile(filepath.Join(dir, "ca.crt"), caPEM, 0o644); err != nil {
		return cert, nil, fmt.Errorf("certificates: %w", err)
	}
	path := filepath.Join(dir, addr.String()+".pem")
	cert, err = loadPair(path)
	switch {
	case err == nil && serves(cert, ca, addr):
		return withCA(cert, ca), caPEM, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return cert, nil, err
	}
	cert, err = issue(ca, addr)
	if err != nil {
		return cert, nil, fmt.Errorf("certificate for %s: %w", addr, err)
	}
	if err := replaceFile(path, encodePair(cert), 0o600); err != nil {
		return cert, nil, fmt.Errorf("certificates: %w", err)
	}
	return withCA(cert, ca), caPEM, nil
}

func withCA(cert, ca tls.Certificate) tls.Certificate {
	cert.Certificate = append(cert.Certificate[:1:1], ca.Leaf.Raw)
	return cert
}

// loadOrMakeCA never replaces a CA: there are machines that trust it.
func loadOrMakeCA(dir string) (tls.Certificate, error) {
	path := filepath.Join(dir, "ca.pem")
	ca, err := loadPair(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return ca, err
	}
	host, _ := os.Hostname()
	ca, err = sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "ecboot CA of " + host},
		NotAfter:              time.Now().Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, nil)
	if err != nil {
		return ca, fmt.Errorf("new CA: %w", err)
	}
	switch err := createFile(path, encodePair(ca), 0o600); {
	case errors.Is(err, fs.ErrExist): // another process was quicker
		return loadPair(path)
	case err != nil:
		return ca, fmt.Errorf("certificates: %w", err)
	}
	return ca, nil
}

// issue makes a certificate for a server. Old iPXEs look for the address in the
// common name.
func issue(ca tls.Certificate, addr netip.Addr) (tls.Certificate, error) {
	end := time.Now().Add(leafLife)
	if end.After(ca.Leaf.NotAfter) {
		end = ca.Leaf.NotAfter
	}
	return sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: addr.String()},
		IPAddresses: []net.IP{addr.AsSlice()},
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &ca)
}

// serves reports whether a certificate is good for a server, and long enough.
func serves(cert, ca tls.Certificate, addr netip.Addr) bool {
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	_, err := cert.Leaf.Verify(x509.VerifyOptions{
		DNSName:     addr.String(),
		Roots:       roots,
		CurrentTime: time.Now().Add(min(leafLife, time.Until(ca.Leaf.NotAfter)) / 2),
	})
	return err == nil
}

// sign makes a key and a certificate for it, signed by a CA or, if that is nil,
// by itself.
func sign(template *x509.Certificate, ca *tls.Certificate) (cert tls.Certificate, err error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return cert, err
	}
	template.NotBefore = notBefore
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return cert, err
	}
	parent, signer := template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return cert, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// encodePair writes a certificate and its key as one text, so that they are
// replaced together.
func encodePair(cert tls.Certificate) []byte {
	key := x509.MarshalPKCS1PrivateKey(cert.PrivateKey.(*rsa.PrivateKey))
	return append(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: key})...)
}

func loadPair(path string) (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(path, path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w; remove it and a new one will be made", path, err)
	}
	return cert, err
}

// createFile makes a file, whole or not at all, and fails if there is one.
func createFile(path string, data []byte, mode fs.FileMode) error {
	return writeFile(path, data, mode, os.Link)
}

func replaceFile(path string, data []byte, mode fs.FileMode) error {
	return writeFile(path, data, mode, os.Rename)
}

func writeFile(path string, data []byte, mode fs.FileMode, place func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return place(f.Name(), path)
}
