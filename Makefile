# make help lists the targets. Everything happens in the virtual environment .venv, made on the first call.

PY ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

CONFIG ?= configs/laptop.yaml
OUTPUT ?= runs/demo
# Threads of torch. More than one slows a model as small as the embedded one down; raise it for a larger one.
THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo functions mcp test test-slow check format seeds bench bfcl replay-bfcl clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## train on the embedded world and write runs/demo (CONFIG=... OUTPUT=... for another run)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/train.py train --config $(CONFIG) --output $(OUTPUT)

functions: $(STAMP)  ## one round on tools written in Python (examples/functions), into runs/functions
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/train.py train --config configs/functions.yaml --output runs/functions

mcp: $(STAMP)  ## one round on the tools of an MCP server (examples/mcp), into runs/mcp
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/train.py train --config configs/mcp.yaml --output runs/mcp

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: $(STAMP)  ## run the tests that take minutes too
	$(BIN)/python -m pytest -m "not gpu"

check: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

seeds: $(STAMP)  ## train several seeds and compare StepTool with its baselines (long)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/seeds.py --config $(CONFIG) --output runs/seeds

bench: $(STAMP)  ## run every benchmark; each prints lines "name: ours OTHER ratio"
	@set -e; for program in $(filter-out benchmarks/seeds.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$program; done

bfcl: $(STAMP)  ## install BFCL's tools and tasks, without dependencies: they clash with ours and none is needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt bfcl-eval mpmath

replay-bfcl: bfcl  ## play BFCL's 800 solutions back, whole and without their last call, and print how many are solved
	$(BIN)/python benchmarks/bfcl.py

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch comes first, so that TORCH="torch==2.13.0 --index-url ..." can name a build for this machine.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PY)" || { echo "no python3 found: install Python 3.11, or say make PY=/path/to/python3.11" >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "$(PY) is not Python 3.11 or 3.12: say make PY=/path/to/python3.11" >&2; exit 1; }
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
