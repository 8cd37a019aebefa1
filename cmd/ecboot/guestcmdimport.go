package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/every-channel/ecboot/internal/api"
	"github.com/every-channel/ecboot/internal/boot"
	"github.com/every-channel/ecboot/internal/config"
	declared "github.com/every-channel/ecboot/internal/guest"
)

func newGuestImportCommand(configPath *string) *cobra.Command {
	var output string
	var replace bool
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Give guests the MAC addresses that they have had elsewhere",
		Long: `Give guests the MAC addresses that they have had elsewhere, in place of those that
ecboot would assign. FILE is a JSON object of names and addresses, or has a line for
each guest, such as web = "02:01:27:a1:f0:c0" or web 02:01:27:a1:f0:c0; web/1 is the
second network card of web. All of it is taken, or nothing: every conflict is
reported, and no guest that runs gets another address.`,
		Example: `  ecboot guest import macs.json
  echo 'web 02:01:27:a1:f0:c0' | ecboot guest import -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadGuestConfig(cmd.Context(), *configPath)
			if err != nil {
				return err
			}
			macs, err := readMACs(args[0], cmd.InOrStdin())
			if err != nil {
				return withCode(exitUsage, err)
			}
			s, err := openSupervisor(cmd.Context())
			switch {
			case errors.Is(err, errNoSupervisor):
			case err != nil:
				return err
			default:
				if err := keepsRunning(cfg, s.guests, macs); err != nil {
					return err
				}
			}
			done, err := declared.StoreIn(stateDir(cfg)).Import(cfg, macs, replace)
			if errors.Is(err, fs.ErrPermission) {
				return withCode(exitEnvironment, fmt.Errorf("%w: whoever may write there can, as with 'sudo ecboot guest import'", err))
			}
			if err != nil {
				return withCode(exitUsage, fmt.Errorf("nothing was taken:\n%w", err))
			}
			list := importedMACs(done, macs)
			err = printList(cmd, output, "imported", list, func(w *tabwriter.Writer) {
				for _, m := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\n", m.Name, m.MAC, m.words())
				}
			})
			if err == nil && s != nil {
				if err = s.Reload(cmd.Context()); err != nil {
					err = fmt.Errorf("the addresses are stored, but 'ecboot up' does not use them: %w", err)
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "also give guests another address that have been assigned one")
	outputFlag(cmd, &output)
	return cmd
}

func readMACs(file string, stdin io.Reader) (map[string]boot.MAC, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stdin = f
	}
	macs, err := declared.ParseMACs(stdin)
	var unread *fs.PathError // which names the file
	if err != nil && !errors.As(err, &unread) {
		err = fmt.Errorf("%s: %w", file, err)
	}
	return macs, err
}

// keepsRunning refuses to change the address of a guest that runs: its network
// card and its leases have the one that it was started with.
func keepsRunning(cfg *config.Config, guests []api.Guest, macs map[string]boot.MAC) error {
	var errs []error
	for _, g := range guests {
		if !isUp(g) && g.State != api.Stopping {
			continue
		}
		d, ok := cfg.DeclaredGuest(g.Name)
		if !ok {
			continue // it is to end, and may have another address when it is back
		}
		for i, name := range declared.CardNames(*d) {
			if i >= len(g.NICs) || g.NICs[i].MAC == nil {
				continue
			}
			n := g.NICs[i]
			if mac, ok := macs[name]; ok && mac != *n.MAC {
				errs = append(errs, fmt.Errorf("%s runs with %v, which would become %v: 'ecboot guest stop %s' first", name, n.MAC, mac, g.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// importedMAC is one address of an import.
type importedMAC struct {
	Name     string   `json:"name"`
	MAC      boot.MAC `json:"mac"`
	Done     string   `json:"done"`     // added, replaced, unchanged
	Declared bool     `json:"declared"` // by the configuration
}

func (m importedMAC) words() string {
	if !m.Declared {
		return m.Done + ", and not declared: it has the address when it is"
	}
	return m.Done
}

func importedMACs(done declared.Imported, macs map[string]boot.MAC) []importedMAC {
	list := []importedMAC{}
	for what, names := range map[string][]string{"added": done.Added, "replaced": done.Replaced, "unchanged": done.Unchanged} {
		for _, name := range names {
			list = append(list, importedMAC{name, macs[name], what, !slices.Contains(done.Undeclared, name)})
		}
	}
	slices.SortFunc(list, func(a, b importedMAC) int { return strings.Compare(a.Name, b.Name) })
	return list
}
