# make demo      install into .venv, then train on MNIST from raw data to a catalogue, in demo/
# make test      install the development tools and a real Horovod, then run every test
# make lint      ruff and mypy            make bench   the benchmarks        make soak   the long fault suite
# make cluster-up  a real Slurm of six nodes on this machine (docs/slurm-on-a-laptop.md)    make cluster-down
# make container   the CPU image of this hpcmass, containers/hpcmass-cpu.sif (docs/containers.md)
# make clean     remove .venv and caches (demo/ is kept)
#
# PYTHON=python3.12        the interpreter (3.10 or newer) to make .venv with
# TORCH_INDEX=URL          the index to take torch from, such as https://download.pytorch.org/whl/cpu
# PYTEST_ARGS='-k order'   more arguments for pytest
# WORKERS=2                processes that share the test files (many tests wait for Slurm); 0: none beside pytest
# CLUSTER_ARGS='--no-accounting'   options of `hpcmass slurm up` and `down`, such as --folder
# APT=no                   install no Debian packages, also where root or sudo could (tests then skip)
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo install dev test soak lint format bench constraints clean cluster-up cluster-down container

WORKERS ?= 2
export PYTHON TORCH_INDEX APT
# Parsl and mpiexec are found on PATH; only what runs inside .venv gets it, not its making.
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
PYTEST := $(IN_VENV) python -m pytest

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install:
	@.ci/install.sh demo

dev:
	@.ci/install.sh dev

demo: install
	@$(IN_VENV) python workflows/mnist/demo.py demo

test: dev
	@$(PYTEST) -m "not soak" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

soak: dev
	@$(PYTEST) -m soak --timeout 7200 $(PYTEST_ARGS)

lint: dev
	@$(IN_VENV); ruff format --check . && ruff check . && mypy

format: dev
	@$(IN_VENV); ruff format . && ruff check --fix .

bench: dev
	@$(IN_VENV) python benchmarks/run_all.py $(BENCH_ARGS)

constraints: dev
	@.ci/constraints.sh

cluster-up: install
	@$(IN_VENV) hpcmass slurm up $(CLUSTER_ARGS)

cluster-down: install
	@$(IN_VENV) hpcmass slurm down $(CLUSTER_ARGS)

container: install
	@containers/build.sh cpu

clean:
	@if [ -e .venv ] && [ ! -e .venv/.made-by-hpcmass ]; then echo "hpcmass: .venv was not made by make; kept"; \
	else rm -rf .venv; fi
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build hpcmass.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@if [ -e demo ]; then echo "demo/ is kept (it may hold work of yours); remove it with: rm -r demo"; fi
