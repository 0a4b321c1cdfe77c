#!/usr/bin/env bash
# From a fresh checkout to the first result: installs what is missing, builds bbot, makes a Debian
# machine, starts controller and agent, and has examples/hello built in the machine.
#   ./demo.sh           prints the result with its log and ends
#   ./demo.sh --serve   stays up and prints the page's address; Ctrl-C ends it
# What it makes is kept for the next run: BBOT_HOME, by default where `bbot` itself looks.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/need.sh

serve=
case ${1-} in
--serve) serve=1 ;;
'') ;;
*) echo "usage: ./demo.sh [--serve]" >&2; exit 2 ;;
esac

# The demonstration talks to its own controller and runs its own worker.
unset BBOT_CONTROLLER BBOT_TOKEN_FILE BBOT_WORKER

need gcc libc6-dev qemu-system-x86 mmdebstrap e2fsprogs uidmap
need_cargo

echo "building bbot (a few minutes the first time)"
cargo build --release --quiet -p bbot
worker=$(cargo xtask worker | tail -n 1)
target=${CARGO_TARGET_DIR:-$PWD/target}
install -m 755 "$worker" "$target/release/bbot-worker"
bbot=$target/release/bbot

"$bbot" machine create debian-12 --if-missing

# The log of controller and agent goes to a file; what they say on their way down is part of it.
log=$(mktemp --suffix=.bbot.log)
"$bbot" up >"$log" 2>&1 &
up=$!
stop() {
  trap - EXIT INT TERM
  kill -INT "$up" 2>/dev/null || true
  wait "$up" || true
}
trap stop EXIT
trap 'stop; exit 130' INT TERM

# `up` prints this line once it can be used; the first time it bootstraps the machine after that.
until grep -q '^bbot is up' "$log"; do
  if ! kill -0 "$up" 2>/dev/null; then
    cat "$log" >&2
    exit 1
  fi
  sleep 0.2
done
url=$(sed -n 's/^bbot is up at //p' "$log" | head -n 1)

result=0
"$bbot" submit --follow examples/hello || result=$?
if [ "$result" != 0 ]; then
  kill -0 "$up" 2>/dev/null || cat "$log" >&2
  echo "the log of controller and agent is $log" >&2
  [ -n "$serve" ] || exit "$result"
fi

if [ -n "$serve" ]; then
  echo
  echo "the page:  $url"
  echo "to use:    $bbot submit --follow DIR"
  echo "the log:   $log"
  echo "Ctrl-C ends it."
  wait "$up"
else
  rm -f "$log"
fi
