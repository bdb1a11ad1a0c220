# Everything runs in .venv, which the first command builds. It needs python3 (3.11 or newer) and nothing else.
#
#   make demo      compare mean-field agents with independent learners; leaves runs/demo/report.html
#   make test      style, types, layers, then all tests but the slow ones
#   make verify    the slow and the statistical tests, other packages' answers beside ours (installed apart)
#   make shuffled  the tests of `make test` in random order
#   make selftest  every promise of reliability, with as many trials as its target names: hours
#   make bench     the benchmarks
#   make lint      style, types and layers alone            make format    put the style right
#   make coverage  the tests, and which lines they reach    make docs      the site, in site/
#   make lock      choose today's versions anew             make clean     remove all that was built, not runs/

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_FLAGS ?= --quiet --quiet
WORKERS ?= 2
# What pytest is given besides: make test TESTS=tests/population, make test PYTEST_FLAGS=-x
TESTS ?=
PYTEST_FLAGS ?=
DEMO ?= compare ising,ising:coupling=-1 --agents mfq,iql,mfac,iac --num-agents 400 --seeds 5 --steps 1000 --name demo
BENCH ?= $(sort $(wildcard scripts/bench/bench_*.py))
# A package index to take torch from; on Linux https://download.pytorch.org/whl/cpu saves gigabytes of CUDA.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_FLAGS)

# Other packages, to compare with: an environment of their own.
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.built

# An activated environment, or pip settings that install elsewhere, must not reach into ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV PIP_CONSTRAINT
export PYTHONNOUSERSITE := 1
export PYTHONUTF8 := 1

.PHONY: help venv peers demo test verify shuffled selftest bench lint style types layers tests format coverage docs lock clean

help:
	@sed -n 's/^#   make/make/p' Makefile

venv: $(STAMP)

# The stamp is written last and holds the folder it was built in. Without it, or in a folder that was moved, what
# lies in .venv may be half an environment: it is built anew. With it, changed requirements are installed on top.
ifneq ($(shell test -x $(BIN)/python && cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml requirements/lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is too old or missing: mfmarl needs Python 3.11 or newer (make PYTHON=python3.11 ...)" >&2; exit 1; }
	@if ! test -x $(BIN)/python || [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ]; then \
	  echo "Building $(VENV): one to five minutes, 1.7 GB"; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) -m venv failed (on Debian: apt install python3-venv)" >&2; exit 1; }; \
	else \
	  echo "Updating $(VENV)"; \
	fi
	@rm -f $@
	@$(PIP) -c requirements/lock.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch setuptools
	@$(PIP) -c requirements/lock.txt --no-build-isolation -e '.[dev]'
	@$(BIN)/python -m pip --disable-pip-version-check check
	@printf '%s' '$(CURDIR)' > $@

peers: $(PEERS_STAMP)

$(PEERS_STAMP): requirements/peers.txt
	@echo "Building $(PEERS): one to three minutes, 1.5 GB"
	@rm -rf $(PEERS)
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install $(PIP_FLAGS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/peers.txt
	@touch $@

demo: venv
	$(BIN)/mfmarl $(DEMO)

test: lint tests

verify: venv peers
	$(BIN)/python -m pytest -n $(WORKERS) -m verify --timeout 3600 $(PYTEST_FLAGS) $(TESTS)

shuffled: venv
	$(BIN)/python -m pytest -n $(WORKERS) -m "not verify" -o addopts="--import-mode=importlib --strict-markers --strict-config" $(PYTEST_FLAGS) $(TESTS)

selftest: venv
	$(BIN)/mfmarl selftest --share 1 --report --name selftest

bench: venv
	@for script in $(BENCH); do echo "== $$script"; $(BIN)/python $$script; done

lint: style types layers

style: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

layers: venv
	$(BIN)/lint-imports

# Last, so that a run ends with pytest's own line.
tests: venv
	$(BIN)/python -m pytest -n $(WORKERS) -m "not verify" --dist worksteal $(PYTEST_FLAGS) $(TESTS)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: venv
	$(BIN)/python -m pytest --cov -n $(WORKERS) -m "not verify" $(PYTEST_FLAGS) $(TESTS)

docs: venv
	@$(PIP) -c requirements/lock.txt --no-build-isolation -e '.[docs]'
	$(BIN)/mkdocs build --strict

lock: venv
	$(BIN)/python requirements/lock.py

clean:
	rm -rf $(VENV) $(PEERS) build dist site htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
