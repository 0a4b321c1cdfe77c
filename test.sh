#!/usr/bin/env bash
# Installs what is missing and runs all tests, those on real parts included.
#   ./test.sh          what every change must pass
#   ./test.sh --full   the long forms too: more property cases, the demo, the benchmarks' short forms
set -euo pipefail
cd "$(dirname "$0")"
. scripts/need.sh

full=
case ${1-} in
--full) full=1 ;;
'') ;;
*) echo "usage: ./test.sh [--full]" >&2; exit 2 ;;
esac

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

step "packages"
need gcc g++ libc6-dev make curl openssl git python3 \
  qemu-system-x86 mmdebstrap e2fsprogs btrfs-progs busybox-static uidmap iproute2 \
  tftp-hpa tftpd-hpa atftp passt cmake nftables dnsmasq-base strace systemd systemd-container util-linux postgresql python3-venv
need_cargo
need_rust_tools

# Everything that a test may use is here now, so a test that would skip fails instead.
export BBOT_REQUIRE=image,qemu,tftp,openssl,passt,cmake,cc,git,python3,nft,dnsmasq,strace,systemd-analyze,prlimit,setpriv,postgres,s3
[ "$(id -u)" != 0 ] || BBOT_REQUIRE=$BBOT_REQUIRE,root,btrfs,nspawn,busybox
target=${CARGO_TARGET_DIR:-$PWD/target}
export BBOT_TEST_CACHE=${BBOT_TEST_CACHE:-$target/test-cache}
need_s3 "$BBOT_TEST_CACHE/s3"
[ -z "$full" ] || export PROPTEST_CASES=4096 BBOT_TEST_RESTORES=200,8 BBOT_TEST_KILLS=50

step "format"
cargo fmt --all --check

step "clippy"
cargo clippy --workspace --all-targets --quiet -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

step "static worker"
BBOT_WORKER=$(cargo xtask worker | tail -n 1)
export BBOT_WORKER
ls -l "$BBOT_WORKER"
ldd "$BBOT_WORKER" 2>&1 | grep -E 'statically linked|not a dynamic executable'

step "machine image"
cargo build --workspace --quiet
# The base below it is found by a hash over all that goes into it and is made once; the machine is a copy.
home=$BBOT_TEST_CACHE/home
mkdir -p "$BBOT_TEST_CACHE/base" "$BBOT_TEST_CACHE/toolchain" "$home/cache"
ln -sfn ../../base "$home/cache/machines"
rm -rf "$home/machines"
"$target/debug/bbot" --home "$home" machine create debian-12
ln -sfn home/machines/default/debian-12/debian-12-1 "$BBOT_TEST_CACHE/debian-12"
install -m 755 "$BBOT_WORKER" toolchain/bootstrap "$BBOT_TEST_CACHE/toolchain"

step "tests"
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --no-fail-fast --status-level slow --final-status-level fail
else
  cargo test --workspace --no-fail-fast --quiet
fi
cargo test --workspace --doc --quiet

step "made-up requests"
scripts/schemathesis "$([ -n "$full" ] && echo 5000 || echo 300)"
scripts/with-postgres scripts/schemathesis "$([ -n "$full" ] && echo 5000 || echo 300)"

step "promises"
scripts/promises

step "simulation"
cargo xtask simulate
[ -z "$full" ] || cargo xtask planted

step "fuzzing"
cargo xtask fuzz --seconds "$([ -n "$full" ] && echo 600 || echo 20)"

step "kill test"
if [ "$(id -u)" = 0 ]; then
  if [ -n "$full" ]; then cargo xtask kill; else cargo xtask kill --kills 20 --tasks 40; fi
else
  echo "skipped: it makes namespaces and mounts, which needs root"
fi

if [ -n "$full" ]; then
  step "demo, twice"
  BBOT_HOME=$BBOT_TEST_CACHE/demo ./demo.sh
  began=$SECONDS
  BBOT_HOME=$BBOT_TEST_CACHE/demo ./demo.sh
  echo "the second time in $((SECONDS - began)) s"
  step "benchmarks, short"
  for bench in bench/*; do
    [ -x "$bench" ] && [ -f "$bench" ] && "$bench" --quick
  done
fi

step "all passed"
