#!/usr/bin/env bash
# Makes .venv in the checkout and installs hpcmass into it.
#
#   .ci/install.sh demo    what `make demo` needs: no root, no compiler
#   .ci/install.sh dev     the same, the development tools, Horovod built for real where that can be done, and
#                          Slurm (none of its services has to run) and a browser from Debian's packages where
#                          root or sudo can
#
# Does nothing when the stamp in .venv fits. Reads PYTHON (the interpreter to use) and TORCH_INDEX (the index
# to take torch from, such as https://download.pytorch.org/whl/cpu). APT=no: no Debian package is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

level=$1
venv=$PWD/.venv
mark=$venv/.made-by-hpcmass   # `make clean` and this script remove no .venv that lacks it

say() { printf '%s\n' "$*"; }
stop() {
    printf 'hpcmass: %s\n' "$@" >&2
    exit 2
}

# Prints the path and version of the base interpreter of $1, if it is one and new enough.
probe() {
    "$1" -c 'import os, sys
path = getattr(sys, "_base_executable", None) or sys.executable
print(os.path.realpath(path) if sys.prefix != getattr(sys, "base_prefix", sys.prefix) else path)
print("%d.%d.%d" % sys.version_info[:3])
sys.exit(0 if sys.version_info >= (3, 10) else 3)' 2>/dev/null
}

find_python() {
    local name found
    if [[ -n ${PYTHON:-} ]]; then
        found=$(probe "$PYTHON") || {
            [[ -n $found ]] && stop "needs Python 3.10 or newer; $PYTHON is $(tail -n1 <<<"$found")."
            stop "$PYTHON does not run. Name another one: make demo PYTHON=python3.12"
        }
    else
        for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
            found=$(probe "$name") && break
            found=
        done
        [[ -n $found ]] || stop "needs Python 3.10 or newer, and found none." \
            "Install one (Debian, Ubuntu: apt-get install python3 python3-venv; a cluster: module load python)" \
            "and, if it is not first on PATH, name it: make demo PYTHON=/path/to/python3.12"
    fi
    python=$(head -n1 <<<"$found")
    version=$(tail -n1 <<<"$found")
}

# With root (or sudo that asks nothing) and apt, what is missing is installed; without, a message says what to do.
apt_install() {
    local as_root=()
    [[ ${APT:-} != no ]] && command -v apt-get >/dev/null || return 1
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "== apt-get install $*"
    "${as_root[@]}" apt-get update -qq &&
        # RUNLEVEL=1: packages start no service (where systemd does not decide that).
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# A program of each package that the development cluster uses; libpmix2 has none.
install_slurm() {
    local each missing=()
    for each in slurmctld:slurmctld slurmd:slurmd srun:slurm-client munged:munge slurmdbd:slurmdbd \
        mariadbd:mariadb-server ip:iproute2 unshare:util-linux; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${each%%:*}" >/dev/null || missing+=("${each#*:}")
    done
    compgen -G '/usr/lib/*/pmix2/lib/libpmix.so.2' >/dev/null || missing+=(libpmix2)
    [[ ${#missing[@]} == 0 ]] && return
    apt_install "${missing[@]}" || say "== no Slurm: its tests will skip; as root: apt-get install ${missing[*]}"
}

# What opens the pages that hpcmass writes, in their tests.
install_browser() {
    local each
    for each in chromium-headless-shell chromium chromium-browser google-chrome; do
        command -v "$each" >/dev/null && return
    done
    apt_install chromium-headless-shell fonts-dejavu-core || apt_install chromium fonts-dejavu-core ||
        say "== no browser: its tests will skip; as root: apt-get install chromium"
}

make_venv() {
    if [[ -e $venv ]]; then
        local have
        have=$("$venv/bin/python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || have=broken
        [[ $have == "$version" ]] && return
        [[ -e $mark ]] || stop "$venv ($have) was not made by make and does not fit Python $version; move it away."
        say "== .venv is for Python $have: made anew for $version"
        rm -rf "$venv"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        [[ $level == dev ]] && apt_install python3-venv || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null || stop \
            "$python ($version) lacks the module venv." \
            "Debian, Ubuntu: apt-get install python${version%.*}-venv. Or name another Python: make demo PYTHON=…"
    fi
    say "== .venv with Python $version ($python)"
    "$python" -m venv "$venv"
    touch "$mark"
}

# uv where it can be had, which is several times faster; pip otherwise.
install_packages() {
    local index
    export UV_SYSTEM_CERTS=1 # sites with a certificate of their own
    export UV_COMPILE_BYTECODE=1 # as pip does; else every process compiles where PYTHONDONTWRITEBYTECODE is set
    index=${PIP_INDEX_URL:-$("$venv/bin/pip" config get global.index-url 2>/dev/null || true)}
    [[ -n $index ]] && export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
    if "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"; then return; fi
    say "== uv could not; once more with pip"
    "$venv/bin/python" -m pip install --quiet "$@"
}

# What an installation of level $1 depends on, as one digest.
stamp_key() {
    {
        cat pyproject.toml constraints.txt .ci/install.sh
        if [[ $1 == dev ]]; then cat .ci/build_horovod.py hpcmass/workflow/horovod_recipe.py; fi
        say "$version ${TORCH_INDEX:-}"
    } | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

find_python
if [[ $level == dev ]]; then install_slurm && install_browser; fi # not a matter of .venv, so not of its stamp either
make_venv
key=$(stamp_key "$level")
[[ $(cat "$venv/.installed-$level" 2>/dev/null) == "$key" ]] && exit 0
started=$SECONDS
rm -f "$venv"/.installed-*
export PIP_DISABLE_PIP_VERSION_CHECK=1

say "== installing ($level); the first time this loads up to 1 GB (3 GB with torch's CUDA build)"
"$venv/bin/python" -m pip install --quiet -c constraints.txt uv || say "== no uv here, going on with pip"
say "== torch, the largest part"
# torch first and with pip, whose own configuration may offer a CPU build that uv does not look for.
"$venv/bin/python" -m pip install --quiet -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
install_packages -c constraints.txt -e ".[$level]"
if [[ $level == dev ]]; then
    if ! command -v g++ >/dev/null; then apt_install g++ || true; fi
    if ! "$venv/bin/python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; then
        apt_install "python${version%.*}-dev" || true
    fi
    "$venv/bin/python" .ci/build_horovod.py
fi
say "$key" >"$venv/.installed-$level"
if [[ $level == dev ]]; then stamp_key demo >"$venv/.installed-demo"; fi # dev holds all of demo
say "== installed in $((SECONDS - started)) s"
