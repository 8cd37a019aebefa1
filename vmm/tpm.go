package vmm

import "fmt"

// tpmArgs connect the machine to a TPM 2.0 that swtpm plays.
func (s *Spec) tpmArgs(l layout) []string {
	if s.TPM == "" {
		return nil
	}
	device := "tpm-crb"
	if s.Arch == ArchARM64 {
		device = "tpm-tis-device"
	}
	return []string{"-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", l.fd("tpm")),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", device + ",tpmdev=tpm0"}
}
