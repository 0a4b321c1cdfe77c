# Sourced by demo.sh, test.sh and the benchmarks: installs Debian packages that are missing.

# need PACKAGE...
need() {
  local missing=() package sudo=()
  for package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  if ! command -v apt-get >/dev/null; then
    echo "error: this is no Debian, so install what these packages of it hold: ${missing[*]}" >&2
    return 1
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    echo "error: these packages are missing and there is no sudo to install them: ${missing[*]}" >&2
    return 1
  fi
  echo "installing ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${sudo[@]}" apt-get update -q &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "error: unable to install ${missing[*]}" >&2
    return 1
  fi
  rm -f "$log"
}

# Rust by rustup may be installed without being on the path of a plain shell.
need_cargo() {
  command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
  if ! command -v cargo >/dev/null; then
    echo "error: cargo is not installed: bbot is built with Rust 1.94 or newer (https://rustup.rs)" >&2
    return 1
  fi
}

# The formatter and the linter, which rustup's minimal profile leaves out.
need_rust_tools() {
  if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    echo "installing rustfmt and clippy"
    rustup --quiet component add rustfmt clippy
  fi
}

# A program from PyPI, in a folder of its own: need_python FOLDER PROGRAM PACKAGE.
need_python() {
  [ ! -x "$1/bin/$2" ] || return 0
  echo "installing $3 into $1"
  local log
  log=$(mktemp)
  if ! { python3 -m venv "$1" && "$1/bin/pip" install "$3"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -rf "$log" "$1"
    echo "error: unable to install $3 from PyPI" >&2
    return 1
  fi
  rm -f "$log"
}

# A stand-in for an S3-compatible service: it is no package of Debian's.
need_s3() {
  need_python "$1" moto_server 'moto[s3,server]==5.2.1'
}

# It is no package of Debian's either.
need_schemathesis() {
  need_python "$1" schemathesis 'schemathesis==4.32.5'
}
