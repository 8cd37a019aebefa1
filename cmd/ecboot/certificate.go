package main

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/every-channel/ecboot/httpboot"
	"github.com/every-channel/ecboot/internal/config"
)

// certificateDir is where the CA and the certificates are kept that are made
// here.
func certificateDir(cfg *config.Config) string { return filepath.Join(stateDir(cfg), "tls") }

// certificate is for the HTTPS server at an address, nil when there is to be
// none.
func (cfg stackConfig) certificate(addr netip.Addr) (*tls.Certificate, error) {
	srv := cfg.Server
	if srv.HTTPSPort == 0 {
		return nil, nil
	}
	if srv.TLSCertificate == "" {
		cert, _, err := httpboot.LoadOrMakeCertificate(cfg.CertificateDir, addr)
		return &cert, err
	}
	cert, err := tls.LoadX509KeyPair(srv.TLSCertificate, srv.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("tls_certificate: %w", err)
	}
	return &cert, nil
}
