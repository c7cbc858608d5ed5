#!/usr/bin/env bash
# Create .venv with fastcifar, all dependencies and, where it can be built, FFCV. A second run does nothing.
# All messages go to stderr, so that stdout holds only the output of the make target.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 2; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null ||
    die "Python 3.11, 3.12 or 3.13 is needed, '$python' is $("$python" --version 2>/dev/null || echo missing); name another with PYTHON=..."
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')

stamp=.venv/.setup-$( (cat setup.py pyproject.toml scripts/setup.sh && "$python" --version) | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Print the first line of the log that names the error, else the last line.
reason() {
    { grep -v subprocess-exited "$log" | grep -m1 -E '(^E|[Ee]rror): ' || tail -1 "$log"; } | sed 's/^ *//' | cut -c1-160
}

# Install Debian packages: as root, else with a sudo that needs no password, else fail.
apt_install() {
    local root=env
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        root=sudo
        sudo -n true 2>/dev/null || return 1
    fi
    say "installing the Debian packages $*"
    { $root apt-get update -qq &&
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1 ||
        { say "apt-get: $(reason)"; return 1; }
}

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install "$version-venv" || die "'$python' cannot make environments: install $version-venv, then run this again"
fi
if [ -d .venv ] && ! ".venv/bin/$version" -c 'import pip' 2>/dev/null; then
    say "removing .venv: it is incomplete or of another Python"
    rm -rf .venv
fi
[ -d .venv ] || "$python" -m venv .venv

pip_install() { .venv/bin/python -m pip --disable-pip-version-check --no-input -q install -e "$1"; }
say "installing fastcifar and its dependencies into .venv (PyTorch with CUDA: about 6 GB, a few minutes)"
pip_install '.[test,lint]'

# FFCV is built with these; torch.compile needs the compiler and Python's headers too.
has_headers() { "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; }
can_build() { command -v c++ >/dev/null && has_headers && pkg-config --exists opencv4 libturbojpeg 2>/dev/null; }
system="libopencv-dev libturbojpeg0-dev pkg-config build-essential"
has_headers || system="$system $version-dev"
missing="will be missing: streaming and FFCV's interop tests$(command -v c++ >/dev/null && has_headers || echo ', torch.compile')"
# shellcheck disable=SC2086  # a list of words
if ! can_build && ! apt_install $system; then
    say "$missing; to get them: sudo apt-get install $system && rm .venv/.setup-* && make setup"
else
    say "building FFCV"
    if ! pip_install '.[ffcv]' >"$log" 2>&1 || ! .venv/bin/python -W ignore -c 'import ffcv' >"$log" 2>&1; then
        cp "$log" .venv/ffcv.log
        say "$missing: FFCV did not build ($(reason)); see .venv/ffcv.log, then rm .venv/.setup-* && make setup"
    fi
fi

rm -f .venv/.setup-*
touch "$stamp"
say "done"
