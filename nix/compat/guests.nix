# guests.NAME: any number of guests, microvm or container, on macvtap or macvlan,
# with datasets of ZFS. The NixOS inside of a guest is NixOS's business: what
# nixosSystem returns goes into nixosConfiguration.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (config) guests;
  mac = types.strMatching "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}";
  microvms = lib.filterAttrs (_: g: g.backend == "microvm") guests;

  baseMac = "02:01:27:00:00:00"; # ecboot's own default
  hostName = config.node.name or config.networking.hostName;
  profileOf = name: "nixos-${name}";
  # QEMU has no microvm for ARM64: there it is a machine that is handed its kernel.
  machineOf =
    system:
    if lib.hasPrefix "aarch64-" system then
      {
        backend = "qemu";
        arch = "arm64";
        boot = "direct";
      }
    else
      { arch = "amd64"; };
  consoleOf = system: if lib.hasPrefix "aarch64-" system then "ttyAMA0" else "ttyS0";

  # All that a NixOS container needs of its own: the rest comes out of the host's
  # store. It is gone with the container, but for its datasets.
  rootOf =
    name: toplevel:
    pkgs.runCommand "ecboot-root-${name}" { } ''
      mkdir -p $out/etc $out/sbin $out/nix/store
      touch $out/etc/os-release
      ln -s ${toplevel}/init $out/sbin/init
    '';

  guestOf =
    name: g:
    let
      nixos = g.nixosConfiguration.config;
      memory = nixos.microvm.mem or null;
      cpus = nixos.microvm.vcpu or null;
    in
    {
      inherit (g) backend autostart;
      node_name = g.nodeName;
    }
    // lib.optionalAttrs (g.zfs != { }) {
      zfs = lib.mapAttrs' (
        _: z:
        lib.nameValuePair z.guestMountpoint {
          inherit (z) pool dataset;
          host_mountpoint = z.hostMountpoint;
        }
      ) g.zfs;
    }
    // (
      if g.backend == "microvm" then
        {
          nic = [
            ({ inherit (g.microvm) macvtap; } // lib.optionalAttrs (g.microvm.mac != null) { inherit (g.microvm) mac; })
          ];
        }
        // lib.optionalAttrs (g.microvm.baseMac != baseMac) { base_mac = g.microvm.baseMac; }
        // machineOf g.microvm.system
        // lib.optionalAttrs (g.nixosConfiguration != null) (
          {
            profile = profileOf name;
            share = [
              {
                source = "/nix/store";
                target = "ro-store";
                read_only = true;
                driver = "virtiofs";
              }
            ];
          }
          // lib.optionalAttrs (memory != null) { memory = "${toString memory}M"; }
          // lib.optionalAttrs (cpus != null) { inherit cpus; }
        )
      else
        {
          nic = [
            {
              inherit (g.container) macvlan;
              name = g.networking.mainLinkName;
            }
          ];
        }
        // lib.optionalAttrs (g.nixosConfiguration != null) {
          root = "${rootOf name nixos.system.build.toplevel}";
          ephemeral = true;
          share = [
            {
              source = "/nix/store";
              target = "/nix/store";
              read_only = true;
            }
          ];
        }
    );

  # The kernel and initrd of a microvm that is a NixOS.
  profiles = lib.concatMapAttrs (
    name: g:
    let
      nixos = g.nixosConfiguration.config;
    in
    lib.optionalAttrs (g.nixosConfiguration != null) {
      ${profileOf name} = {
        kernel = "${nixos.system.build.kernel}/${nixos.system.boot.loader.kernelFile}";
        initrds = [ "${nixos.system.build.initialRamdisk}/${nixos.system.boot.loader.initrdFile}" ];
        cmdline = lib.concatStringsSep " " (
          [
            "init=${nixos.system.build.toplevel}/init"
            "console=${consoleOf g.microvm.system}"
          ]
          ++ nixos.boot.kernelParams
        );
      };
    }
  ) microvms;

  settings = {
    guest = lib.mapAttrs guestOf guests;
  }
  // lib.optionalAttrs (profiles != { }) { profile = profiles; };

  # Whether ecboot is told what the guest runs.
  hasSystem =
    name: g:
    let
      own = config.services.ecboot.settings.guest.${name};
    in
    if g.backend == "microvm" then own ? profile else own ? root;
in
{
  options.node.type = mkOption {
    type = types.enum [
      "host"
      "microvm"
      "container"
    ];
    default = "host";
    description = "The type of this machine.";
  };

  options.containers = mkOption {
    type = types.attrsOf (
      types.submodule (
        { config, ... }:
        {
          options.nixosConfiguration = mkOption {
            type = types.unspecified;
            default = null;
            description = "What nixosSystem returns for one of NixOS's own containers: sets its path.";
          };
          config = lib.mkIf (config.nixosConfiguration != null) {
            path = config.nixosConfiguration.config.system.build.toplevel;
          };
        }
      )
    );
  };

  options.guests = mkOption {
    default = { };
    description = "Guests that ecboot keeps.";
    type = types.attrsOf (
      types.submodule (
        { name, config, ... }:
        let
          guestName = name;
        in
        {
          options = {
            nodeName = mkOption {
              type = types.str;
              default = "${hostName}-${name}";
              description = "Host name of the guest.";
            };
            backend = mkOption {
              type = types.enum [
                "microvm"
                "container"
              ];
              description = "What the guest runs in.";
            };
            extraSpecialArgs = mkOption {
              type = types.attrs;
              default = { };
              description = "Goes to nixosSystem now, as specialArgs.";
            };
            modules = mkOption {
              type = types.listOf types.unspecified;
              default = [ ];
              description = "Goes to nixosSystem now, as modules.";
            };
            nixosConfiguration = mkOption {
              type = types.unspecified;
              default = null;
              example = lib.literalExpression "nixpkgs.lib.nixosSystem { modules = [ ./web.nix ]; }";
              description = "What nixosSystem returns for the guest.";
            };
            microvm = {
              system = mkOption {
                type = types.str;
                description = "The system of the microvm, such as x86_64-linux.";
              };
              macvtap = mkOption {
                type = types.str;
                description = "The host interface under the microvm's macvtap.";
              };
              baseMac = mkOption {
                type = mac;
                default = baseMac;
                description = "Its second and third byte are those of assigned MACs.";
              };
              mac = mkOption {
                type = types.nullOr mac;
                default = null;
                description = "MAC of the guest. null: assigned by ecboot, see docs/migrating.md.";
              };
            };
            container.macvlan = mkOption {
              type = types.str;
              description = "The host interface under the container's macvlan.";
            };
            networking.mainLinkName = mkOption {
              type = types.str;
              default = if config.backend == "microvm" then config.microvm.macvtap else "mv-${config.container.macvlan}";
              description = "The guest's network link. That of a container may not be named like one of the host's.";
            };
            zfs = mkOption {
              default = { };
              description = "Datasets of ZFS that the guest sees.";
              type = types.attrsOf (
                types.submodule (
                  { name, config, ... }:
                  {
                    options = {
                      pool = mkOption {
                        type = types.str;
                        description = "The host's pool.";
                      };
                      dataset = mkOption {
                        type = types.str;
                        description = "The dataset in it, made with its parents if it is missing.";
                      };
                      hostMountpoint = mkOption {
                        type = types.path;
                        default = "/guests/${guestName}${config.guestMountpoint}";
                        description = "Where the host mounts it.";
                      };
                      guestMountpoint = mkOption {
                        type = types.str;
                        default = name;
                        description = "Where the guest sees it.";
                      };
                    };
                  }
                )
              );
            };
            autostart = mkOption {
              type = types.bool;
              default = false;
              description = "Start it together with the host.";
            };
          };
        }
      )
    );
  };

  config = lib.mkIf (guests != { }) {
    assertions = lib.concatMap (
      name:
      let
        g = guests.${name};
      in
      lib.mapAttrsToList (mount: z: {
        assertion = lib.hasPrefix "/" z.guestMountpoint;
        message = "guest ${name}: zfs ${mount}: the guestMountpoint must be an absolute path.";
      }) g.zfs
      ++ lib.mapAttrsToList (mount: z: {
        assertion = g.backend != "microvm" || builtins.stringLength z.guestMountpoint <= 31;
        message = "guest ${name}: zfs ${mount}: a microvm mounts it by its guestMountpoint as the tag, which can have 31 bytes; write a shorter one, and mount it where it belongs in the guest";
      }) g.zfs
      ++ [
        {
          assertion = (g.modules == [ ] && g.extraSpecialArgs == { }) || g.nixosConfiguration != null;
          message = "guest ${name}: ecboot builds no NixOS from modules and extraSpecialArgs; write guests.${name}.nixosConfiguration = nixosSystem { modules = …; specialArgs = …; }";
        }
        {
          assertion = hasSystem name g;
          message = "guest ${name}: nothing says what it runs; write guests.${name}.nixosConfiguration, or services.ecboot.settings.guest.${name}.${
            if g.backend == "microvm" then "profile" else "root"
          }";
        }
      ]
    ) (lib.attrNames guests);

    services.ecboot = {
      enable = true;
      settings = lib.mapAttrsRecursive (_: lib.mkDefault) settings;
    };
  };
}
