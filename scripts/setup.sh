#!/usr/bin/env bash
# Make .venv with fastcifar, its dependencies, its tests' and, where it can be built, FFCV. A second run does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 2; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "Python 3.11 or later is needed, '$python' is $("$python" --version 2>&1 || true); name another with PYTHON=..."

stamp=.venv/.setup-$( (cat setup.py pyproject.toml scripts/setup.sh && "$python" --version) | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

# How to become root for apt-get: not at all, with sudo, or not to be had.
if ! command -v apt-get >/dev/null; then
    root=none
elif [ "$(id -u)" = 0 ]; then
    root=env
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    root=sudo
else
    root=none
fi

apt_install() {
    [ "$root" != none ] || return 1
    dpkg -s "$@" >/dev/null 2>&1 && return 0
    say "installing the Debian packages $*"
    { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
        >.venv-apt.log 2>&1 || { tail -3 .venv-apt.log >&2; rm -f .venv-apt.log; return 1; }
    rm -f .venv-apt.log
}

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    apt_install "$version-venv" || die "'$python' has no venv module: install $version-venv, then run this again"
fi
if [ -d .venv ] && ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    say "removing an incomplete .venv"
    rm -rf .venv
fi
"$python" -m venv .venv

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input -q "$@"; }
say "installing fastcifar and its dependencies into .venv (PyTorch with CUDA: about 6 GB, a few minutes)"
pip install -e '.[test,lint]'

say "building FFCV"
missing="streaming and the FFCV interop tests will be missing"
system="libopencv-dev libturbojpeg0-dev pkg-config build-essential"
if ! pkg-config --exists opencv4 libturbojpeg 2>/dev/null && ! apt_install $system; then
    say "$missing: FFCV needs $system (sudo apt-get install them, delete .venv/.setup-* and run this again)"
elif ! pip install -e '.[ffcv]'; then
    say "$missing: FFCV did not build (the lines above say why); fastcifar works without it"
fi

rm -f .venv/.setup-*
touch "$stamp"
say "done"
