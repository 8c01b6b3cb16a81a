#!/usr/bin/env bash
# Builds all that benches/gpu/run.sh needs on a machine without a Rust toolchain into one folder: the program, the test
# programs and the bench, with the emulated device, stripped.
#
#     benches/gpu/build.sh [release|dev [FOLDER]]     by default release, into benches/gpu/built
#
# Take the folder along with a checkout of the same commit, whose tests' fixtures and kernels' PTX it reads.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${1:-release}
built=${2:-benches/gpu/built}
# What may travel, with a checkout.
most_mib=48

# rust-toolchain.toml pins the toolchain. Where it is not installed and can't be fetched, the stable one has to do.
cargo --version >/dev/null 2>&1 || export RUSTUP_TOOLCHAIN=stable
# For the processors that the target names, not for this one: the card's machine may have another. Code for wider vectors is
# chosen at run time.
unset RUSTFLAGS
options=(--workspace --locked --no-run --lib --test ops --test places --bench gpu)
[ "$profile" = dev ] || options+=(--release)
messages=$(CARGO_TERM_COLOR=never cargo test "${options[@]}" 2>&1) || { printf '%s\n' "$messages"; exit 1; }

# The path of a test program, by what cargo calls it.
program() {
    printf '%s\n' "$messages" | sed -n "s|^ *Executable $1 (\(.*$2.*\))\$|\1|p" | tail -n 1
}

mkdir -p "$built"
place() {
    if [ ! -x "$2" ]; then
        printf 'build: cargo named no program for %s\n%s\n' "$1" "$messages"
        exit 1
    fi
    if [ "$profile" = dev ]; then
        ln -sf "$PWD/$2" "$built/$1"
    else
        # Not over a program that runs.
        strip -o "$built/$1.new" "$2" && mv "$built/$1.new" "$built/$1"
    fi
}
place kernels "$(program 'unittests lib.rs' '/imp_model-')"
place ops "$(program 'tests/ops.rs' /)"
place places "$(program 'tests/places/main.rs' /)"
place gpu "$(program 'benches/gpu/main.rs' /)"
place imp-flow "target/$([ "$profile" = dev ] && echo debug || echo release)/imp-flow"

git rev-parse --short=12 HEAD >"$built/COMMIT" 2>/dev/null || echo unknown >"$built/COMMIT"
[ "$profile" != dev ] || exit 0
[ -z "$(git status --porcelain 2>/dev/null)" ] || echo "$(cat "$built/COMMIT") with changes" >"$built/COMMIT"
needs() {
    objdump -p "$built"/{kernels,ops,places,gpu,imp-flow} | sed -n "$1" | sort -uV
}
{
    echo "x86-64 Linux with glibc $(needs 's/.*GLIBC_\([0-9.]*\).*/\1/p' | tail -n 1) or later, and these libraries:"
    needs 's/^ *NEEDED *//p'
} >"$built/NEEDS"
cat "$built/NEEDS"
size=$(du -sm "$built" | cut -f 1)
du -h "$built"/* | sort -h
echo "$size MiB in $built"
[ "$size" -le "$most_mib" ] || { echo "build: more than $most_mib MiB"; exit 1; }
