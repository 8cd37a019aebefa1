# ecboot as a package: the static binary that "make" builds, with its completions
# and manual pages.
{
  runCommand,
  installShellFiles,
  binary,
}:
runCommand "ecboot" { nativeBuildInputs = [ installShellFiles ]; } ''
  install -D -m 0755 ${binary} $out/bin/ecboot
  export HOME=$TMPDIR
  for shell in bash fish zsh; do
    $out/bin/ecboot completion $shell >ecboot.$shell
  done
  installShellCompletion ecboot.{bash,fish,zsh}
  $out/bin/ecboot docs --man man
  installManPage man/*
''
