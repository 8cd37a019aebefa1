# The options of the two modules that ecboot replaces, as settings of ecboot's.
# docs/migrating.md has a row for each of them.
{
  imports = [
    ./compat/ipxe-qemu.nix
    ./compat/guests.nix
  ];
}
