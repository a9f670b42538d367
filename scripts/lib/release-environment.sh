# The environment in which everything is built that is shipped: without the flags of the user who builds it, and without paths and
# dates of this machine in the results. To be sourced in the root of the repository.
# shellcheck shell=bash

# Paths of this machine, and the names that are in the programs instead.
set_flags() {
  local root=$PWD cargo_home sysroot commit separator=$'\x1f'
  cargo_home=$(realpath -m "${CARGO_HOME:-$HOME/.cargo}")
  sysroot=$(rustc --print sysroot)
  commit=$(rustc -vV | sed -n 's/^commit-hash: //p')
  CARGO_ENCODED_RUSTFLAGS=--remap-path-prefix=$cargo_home=/cargo
  CARGO_ENCODED_RUSTFLAGS+=$separator--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc/$commit
  CARGO_ENCODED_RUSTFLAGS+=$separator--remap-path-prefix=$root=/teesql
  CARGO_ENCODED_RUSTFLAGS+=$separator-Clink-arg=-Wl,--build-id=sha1
  # aws-lc and ring are C and assembly. The crate cc reads these as words of a shell.
  CC_SHELL_ESCAPED_FLAGS=1
  CFLAGS="'-ffile-prefix-map=$cargo_home=/cargo' '-ffile-prefix-map=$root=/teesql'"
  export CARGO_ENCODED_RUSTFLAGS CC_SHELL_ESCAPED_FLAGS CFLAGS
}

# Flags and profiles of the caller must not decide what is shipped.
clear_environment() {
  local name
  for name in $(compgen -e); do
    case $name in
      RUSTFLAGS | RUSTC_WRAPPER | RUSTC_WORKSPACE_WRAPPER | CARGO_INCREMENTAL | CARGO_BUILD_* | CARGO_PROFILE_*) unset "$name" ;;
      CARGO_TARGET_*_RUSTFLAGS | CFLAGS | CXXFLAGS | CPPFLAGS | LDFLAGS | TARGET_CFLAGS | HOST_CFLAGS | CFLAGS_*) unset "$name" ;;
    esac
  done
  umask 022
  export LC_ALL=C TZ=UTC
}

# Without a repository, as in the context of a container's build, the programs have the date of the last release.
set_date() {
  local date
  if [ -z "${SOURCE_DATE_EPOCH:-}" ] && date=$(git log -1 --format=%ct 2>/dev/null); then
    export SOURCE_DATE_EPOCH=$date
  fi
}
