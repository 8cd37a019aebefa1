# services.ecboot: "ecboot up" as a service, its configuration as a set.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.ecboot;
  toml = pkgs.formats.toml { };
  file = toml.generate "ecboot.toml" cfg.settings;
in
{
  imports = [ ./compat.nix ];

  options.services.ecboot = {
    enable = lib.mkEnableOption "ecboot: netboot servers and the guests of this host";

    package = lib.mkOption {
      type = lib.types.package;
      example = lib.literalExpression "pkgs.callPackage ./package.nix { binary = ./ecboot; }";
      description = "The package with bin/ecboot.";
    };

    settings = lib.mkOption {
      type = toml.type;
      default = { };
      example = lib.literalExpression ''
        {
          segment.lab = { bridge = "br-lab"; uplink = "eth1"; address = "10.77.0.1/24"; };
          guest.web = { backend = "qemu"; memory = "2G"; autostart = true; nic = [ { segment = "lab"; } ]; };
        }
      '';
      description = "What becomes ecboot.toml: `ecboot config show --reference` explains every key.";
    };

    qemuPackage = lib.mkOption {
      type = lib.types.package;
      default = pkgs.qemu_kvm;
      description = "QEMU for the guests.";
    };

    path = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [ ];
      example = lib.literalExpression "[ pkgs.swtpm pkgs.virtiofsd pkgs.zfs ]";
      description = "Programs that guests need besides: swtpm for a TPM, virtiofsd for shares, zfs for datasets.";
    };

    operators = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "alice" ];
      description = "Users who may drive the guests without being root.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."ecboot/ecboot.toml".source = file;
    # Where ecboot looks for UEFI firmware, which QEMU's package describes.
    environment.etc."qemu/firmware".source = lib.mkDefault "${cfg.qemuPackage}/share/qemu/firmware";

    # QEMU runs as ecboot-guest; who is in the group of operators may drive the
    # guests. A guest that breaks out of QEMU is not.
    users.users.ecboot-guest = {
      isSystemUser = true;
      group = "ecboot-guest";
      extraGroups = [ "kvm" ];
    };
    users.groups.ecboot-guest = { };
    users.groups.${cfg.settings.server.operator_group or "ecboot"}.members = cfg.operators;

    systemd.tmpfiles.rules = [
      "d /run/ecboot 0711 root root -"
      "d /var/lib/ecboot 0755 root root -"
      "d /var/cache/ecboot 0755 root root -"
    ];

    systemd.slices.ecboot.description = "Guests of ecboot";

    # What dist/ecboot.service says, and why, in NixOS's words.
    systemd.services.ecboot = {
      description = "ecboot: boot servers and guests";
      documentation = [ "man:ecboot(1)" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "local-fs.target"
        "remote-fs.target"
        "zfs-mount.service"
      ];
      wantedBy = [ "multi-user.target" ];
      path = [
        cfg.qemuPackage
        config.systemd.package
      ]
      ++ cfg.path;
      # A new configuration is read by the process that runs.
      reloadTriggers = [ file ];
      unitConfig = {
        StartLimitIntervalSec = "10min";
        StartLimitBurst = 20;
      };
      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${cfg.package}/bin/ecboot up --leave-guests --config /etc/ecboot/ecboot.toml";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        KillMode = "process";
        OOMPolicy = "continue";
        Restart = "on-failure";
        RestartSec = 5;
        WatchdogSec = 30;
        TimeoutStartSec = "3min";
        TimeoutStopSec = "1min";
        CapabilityBoundingSet = "~CAP_SYS_RAWIO CAP_SYS_TIME CAP_SYSLOG CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_WAKE_ALARM CAP_BLOCK_SUSPEND";
        KeyringMode = "private";
      };
    };
  };
}
