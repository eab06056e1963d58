# Set-up, tests and checks. `make` alone lists the targets.

# The interpreters tried for .venv, in this order. 3.11 comes first: it is the version that the pins in
# constraints.txt are tested with. Choose another with `make PYTHON=python3.13 ...`.
PYTHON ?= python3.11 python3.12 python3.13 python3 python
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG := configs/poisson.yaml
WORKERS := auto

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup solve test test-slow lint types peers bench format clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' Makefile | awk -F@ '{printf "%-18s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv and install kanpinn into it, with pinned versions

solve: $(STAMP) ## solve configs/poisson.yaml (CONFIG=... for another)
	$(BIN)/kanpinn solve $(CONFIG)

test: $(STAMP) ## run the test suite, a process per core (WORKERS=0 for none)
	$(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

test-slow: $(STAMP) ## run the tests marked slow
	$(BIN)/pytest -m slow

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types
	$(BIN)/mypy

peers: .peers/.installed ## create .peers with the packages that benchmarks/ compares with

.peers/.installed: benchmarks/peers.txt
	@for python in $(PYTHON); do \
	  if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then \
	    "$$python" -m venv --clear .peers && break; \
	  fi; \
	done
	.peers/bin/python -m pip install -q -r benchmarks/peers.txt
	@touch $@

bench: $(STAMP) ## time layers beside a baseline, a plain network and, after `make peers`, the peers
	$(BIN)/python benchmarks/layers.py --tuned --repeats 5 --tasks forward,backward,laplacian

format: $(STAMP) ## format the code and fix what can be fixed by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build products (never runs/)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the same, and both environments
	rm -rf $(VENV) .peers

# Each candidate is run, not just looked for: a name on the path may be a shim with nothing behind it,
# or a Python whose venv module is packaged apart.
$(BIN)/python:
	@for python in $(PYTHON); do \
	  if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$("$$python" --version) ($$python)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "No usable Python among: $(PYTHON)." >&2; \
	echo "kanpinn needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian: python3-venv);" \
	  "name it with PYTHON=/path/to/python." >&2; \
	exit 1

# The build backend is installed first and used from .venv, so that it is pinned like the rest.
$(STAMP): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt setuptools
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m kanpinn.kernels
	@touch $@
