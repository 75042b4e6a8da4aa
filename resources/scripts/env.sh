# Sourced by the scripts of this project: where things are, how progress is shown, how packages are asked for.
# What is fetched or made is kept in $CACHE, so that a second run fetches and makes nothing.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${PODVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/podvisor}
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
TRIPLE=x86_64-unknown-linux-gnu
PODVISOR_BINARY=$TARGET_DIR/$TRIPLE/release/podvisor

step() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command with root's rights: as it is for root, else by sudo where it asks nothing.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

can_be_root() { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }

# Installs the Debian packages that are missing, or says the command that does.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    local install="apt-get install -y --no-install-recommends ${missing[*]}"
    can_be_root || die "packages are missing; install them with: sudo apt-get update && sudo $install"
    step "installing ${missing[*]}"
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # the command is words
    as_root env DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
}

# A command of cargo's that is not there yet: need_cargo_tool NAME (the crate and the command have one name).
need_cargo_tool() {
    command -v "$1" >/dev/null && return
    step "installing $1 (cargo install, some minutes, once)"
    cargo install --quiet --locked "$1"
}

# KVM that runs an unmodified kernel: hardware virtualization in the CPU and a /dev/kvm that can be opened.
kvm_is_hardware() {
    grep -q -w -m1 -E 'vmx|svm' /proc/cpuinfo && [ -c /dev/kvm ] && { [ -w /dev/kvm ] || can_be_root; }
}

# Builds a program of the workspace as one static file: build_static PACKAGE PROGRAM.
# A target is named so that the flag does not reach proc-macros.
build_static() {
    command -v cargo >/dev/null || die "there is no cargo; install Rust: https://rustup.rs"
    command -v cc >/dev/null || need_packages gcc libc6-dev
    step "building $2 (release, static)"
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --manifest-path "$ROOT/Cargo.toml" --release --locked --target "$TRIPLE" -p "$1" --bin "$2"
}

build_podvisor() { build_static vmm podvisor; }
