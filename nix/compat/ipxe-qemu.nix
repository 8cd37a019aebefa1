# services.every-channel.ipxe-qemu: one virtual machine that boots by iPXE, with a
# disk that stays and, if wanted, a network card on the LAN.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  old = config.services.every-channel.ipxe-qemu;
  path = "services.every-channel.ipxe-qemu";

  segment = "ipxe-qemu";
  profile = "ipxe-qemu";

  # What QEMU's user network had: scripts name this host by its address.
  host = "10.0.2.2";
  guest = "10.0.2.15";

  machine = lib.splitString "," old.machine;
  machineProperties = lib.tail machine;
  accel = lib.concatMap (
    p: lib.optional (lib.hasPrefix "accel=" p) (lib.removePrefix "accel=" p)
  ) machineProperties;

  # QEMU's letters: n is the network, c the first disk.
  order = lib.removePrefix "order=" old.boot.order;

  served = "http://${host}:${toString old.boot.http.port}/";
  chainUrl = if old.boot.chainUrl == null then "${served}netboot.ipxe" else old.boot.chainUrl;
  fromRoot = old.boot.http.enable && lib.hasPrefix served chainUrl;
  script = lib.removePrefix served chainUrl;

  settings = {
    segment.${segment} = {
      bridge = "ec-${segment}";
      address = "${host}/24";
      pool = "${guest}-10.0.2.99";
      dns = old.boot.userNet.dnsServers;
      nat = true;
    };
    guest.${old.name} = {
      backend = "qemu";
      node_name = old.boot.userNet.hostname;
      autostart = true;
      restart = "always";
      restart_delay = "5s";
      machine = lib.head machine;
      accel = if !old.enableKvm || accel == [ "tcg" ] then "tcg" else "auto";
      cpus = old.vcpus;
      memory = "${toString old.memoryMiB}M";
      boot = if lib.hasPrefix "c" order then "disk" else "network";
      nic = [
        {
          inherit segment;
          inherit (old.boot.userNet) model;
          # The first that QEMU gives out by itself.
          mac = "52:54:00:12:34:56";
          address = guest;
        }
      ]
      ++ lib.optional old.lan.enable {
        macvtap = old.lan.macvtap.interface;
        inherit (old.lan.macvtap) name;
        inherit (old.lan) model;
      };
      disk = [
        {
          inherit (old.disk) path size;
          format = "qcow2";
        }
      ];
    }
    // lib.optionalAttrs (old.cpu != "host") { inherit (old) cpu; }
    // lib.optionalAttrs (old.extraArgs != [ ]) { extra = old.extraArgs; }
    // (if fromRoot then { inherit profile; } else { chain_url = chainUrl; });
  }
  // lib.optionalAttrs fromRoot {
    server.http_port = old.boot.http.port;
    profile.${profile} = {
      tree = old.boot.http.root;
      programs = {
        bios = script;
        uefi-x64 = script;
      };
    };
  };
in
{
  options.services.every-channel.ipxe-qemu = {
    enable = lib.mkEnableOption "the iPXE/QEMU boot VM, by ecboot";
    package = mkOption {
      type = types.package;
      default = pkgs.qemu_kvm;
      description = "QEMU package.";
    };
    name = mkOption {
      type = types.str;
      default = "every-channel-ipxe";
      description = "Name of the guest.";
    };
    machine = mkOption {
      type = types.str;
      default = "q35,accel=kvm";
      description = "QEMU machine string; of its properties accel alone is known.";
    };
    cpu = mkOption {
      type = types.str;
      default = "host";
      description = "QEMU CPU model. \"host\" is what ecboot takes by itself, if there is KVM.";
    };
    enableKvm = mkOption {
      type = types.bool;
      default = true;
      description = "Use KVM when available.";
    };
    vcpus = mkOption {
      type = types.ints.positive;
      default = 2;
      description = "Virtual CPU count.";
    };
    memoryMiB = mkOption {
      type = types.ints.positive;
      default = 4096;
      description = "Guest memory in MiB.";
    };
    serial = mkOption {
      type = types.str;
      default = "mon:stdio";
      description = "Without effect: `ecboot guest console` shows the serial console.";
    };
    stateDir = mkOption {
      type = types.str;
      default = "/var/lib/every-channel/ipxe-qemu";
      description = "Directory of the disk.";
    };
    disk = {
      path = mkOption {
        type = types.str;
        default = "${old.stateDir}/disk.qcow2";
        description = "Persistent qcow2 disk path.";
      };
      size = mkOption {
        type = types.str;
        default = "16G";
        description = "Size of the disk when it is made.";
      };
    };
    boot = {
      order = mkOption {
        type = types.str;
        default = "order=n";
        description = "QEMU boot order of the letters n and c.";
      };
      chainUrl = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "What iPXE loads; by default netboot.ipxe of boot.http.root.";
      };
      http = {
        enable = mkOption {
          type = types.bool;
          default = true;
          description = "Serve boot.http.root to the guest.";
        };
        bindIp = mkOption {
          type = types.str;
          default = "127.0.0.1";
          description = "Without effect: ecboot answers the guest on the bridge between them.";
        };
        port = mkOption {
          type = types.port;
          default = 8080;
          description = "Port of ecboot's HTTP server.";
        };
        root = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "Directory with kernel, initrd and netboot.ipxe.";
        };
      };
      userNet = {
        hostname = mkOption {
          type = types.str;
          default = "every-channel-ipxe";
          description = "Host name of the guest.";
        };
        dnsServers = mkOption {
          type = types.listOf types.str;
          default = [ "1.1.1.1" ];
          description = "Name servers of the boot network.";
        };
        tftpDir = mkOption {
          type = types.str;
          default = "${old.stateDir}/tftp";
          description = "Without effect: ecboot carries iPXE itself.";
        };
        bootFilename = mkOption {
          type = types.str;
          default = "undionly.kpxe";
          description = "Without effect: ecboot chooses the boot program by the firmware.";
        };
        model = mkOption {
          type = types.str;
          default = "e1000";
          description = "NIC model of the boot network.";
        };
      };
    };
    lan = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Attach a second NIC to a real LAN.";
      };
      model = mkOption {
        type = types.str;
        default = "virtio-net-pci";
        description = "NIC model of the LAN.";
      };
      macvtap = {
        interface = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "Host interface under the macvtap.";
        };
        name = mkOption {
          type = types.str;
          default = "ecqemu0";
          description = "Name of the macvtap while the guest runs.";
        };
        mode = mkOption {
          type = types.enum [
            "private"
            "vepa"
            "bridge"
            "passthru"
            "source"
          ];
          default = "bridge";
          description = "ecboot's macvtaps have the mode bridge.";
        };
      };
    };
    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Additional arguments of QEMU, behind all others.";
    };
  };

  config = lib.mkIf old.enable {
    assertions = [
      {
        assertion = old.boot.userNet.dnsServers != [ ];
        message = "${path}.boot.userNet.dnsServers must not be empty";
      }
      {
        assertion = !old.lan.enable || old.lan.macvtap.interface != null;
        message = "${path}.lan.macvtap.interface must be set when lan.enable is true";
      }
      {
        assertion = !old.boot.http.enable || old.boot.http.root != null;
        message = "${path}.boot.http.root must be set when boot.http.enable is true";
      }
      {
        assertion = !old.lan.enable || old.lan.macvtap.mode == "bridge";
        message = "${path}.lan.macvtap.mode: ecboot's macvtaps have the mode bridge; put the guest on a bridge instead, with uplink in services.ecboot.settings.segment";
      }
      {
        assertion = lib.all (p: lib.hasPrefix "accel=" p) machineProperties && lib.length accel <= 1;
        message = "${path}.machine: ecboot knows no property but accel; write a plain \"q35\" or \"pc\"";
      }
      {
        assertion = builtins.match "[nc]+" order != null;
        message = "${path}.boot.order: write \"order=n\" for the network or \"order=cn\" for the disk first; ecboot knows no other";
      }
    ];
    warnings =
      lib.optional (old.serial != "mon:stdio")
        "${path}.serial has no effect: ecboot keeps the serial console, and `ecboot guest console ${old.name}` shows it"
      ++ lib.optional (old.boot.userNet.bootFilename != "undionly.kpxe")
        "${path}.boot.userNet.bootFilename has no effect: ecboot chooses the boot program; services.ecboot.settings.server.nbp names another"
      ++
        lib.optional (old.boot.http.enable && old.boot.http.root != null && !fromRoot)
          "${path}.boot.http.root is not served, because boot.chainUrl leads elsewhere; give services.ecboot.settings.profile.NAME.tree for it";

    services.ecboot = {
      enable = true;
      qemuPackage = lib.mkDefault old.package;
      settings = lib.mapAttrsRecursive (_: lib.mkDefault) settings;
    };
  };
}
