// Package nixtest evaluates the NixOS modules in nix/ with a stand-in for nixpkgs
// and has ecboot read what they come to. It has only tests.
package nixtest
