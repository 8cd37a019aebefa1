# What a NixOS host with ecboot's module and the given one comes to, as far as the
# tests look at it. The rest of NixOS is options that take anything.
{
  module,
  lib ? import ./lib.nix,
}:
let
  anything = lib.types.attrsOf value;
  value = lib.types.oneOf [
    lib.types.bool
    lib.types.int
    lib.types.str
    lib.types.package
    (lib.types.attrsOf value)
    (lib.types.listOf value)
  ];
  option = type: default: lib.mkOption { inherit type default; };

  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/${name}";
  };
  pkgs = {
    qemu_kvm = package "qemu";
    coreutils = package "coreutils";
    formats.toml = _: {
      type = anything;
      generate = name: _: package name;
    };
    runCommand = name: _: _: package name;
  };

  nixos = {
    options = {
      networking.hostName = option lib.types.str "host";
      assertions = option (lib.types.listOf lib.types.unspecified) [ ];
      warnings = option (lib.types.listOf lib.types.str) [ ];
      environment.systemPackages = option (lib.types.listOf lib.types.package) [ ];
      environment.etc = option anything { };
      users = option anything { };
      systemd.package = option lib.types.package (package "systemd");
      systemd.services = option anything { };
      systemd.slices = option anything { };
      systemd.tmpfiles.rules = option (lib.types.listOf lib.types.str) [ ];
    };
    config.services.ecboot.package = package "ecboot";
  };

  inherit
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ../../../nix/module.nix
        nixos
        module
      ];
    })
    config
    ;
  failed = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
in
{
  inherit failed;
  inherit (config) warnings users;
  inherit (config.services.ecboot) enable;
  # Of a host whose assertions fail, NixOS builds nothing.
  settings = if failed == [ ] then config.services.ecboot.settings else null;
  unit = config.systemd.services.ecboot or null;
  tmpfiles = config.systemd.tmpfiles.rules;
}
