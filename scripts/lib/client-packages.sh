# What scripts/package-clients and scripts/npm-package share. To be sourced in the root of the repository.
# shellcheck shell=bash

# third_party_licenses <package> <target triple> <file>: the licenses of the crates that are linked into a package. Built like the
# tests.
third_party_licenses() {
  local folder=$PWD/target/dist/licenses/$1
  mkdir -p "$folder"
  cargo tree --locked -p "$1" --target "$2" -e normal,no-proc-macro --prefix none --format '{p}' >"$folder/crates"
  cargo metadata --locked --format-version 1 --filter-platform "$2" >"$folder/metadata"
  cargo run --quiet --locked -p packaging --features engine/mock -- copyright "$folder/crates" "$folder/metadata" "$folder"
  cp "$folder/third-party-licenses" "$3"
}

# Whether its input, which it reads to the end, names no path of this machine.
names_no_path() {
  [ "$(grep -c -a -F -e "$PWD" -e "${CARGO_HOME:-$HOME/.cargo}" -e "$(rustc --print sysroot)")" -eq 0 ]
}
