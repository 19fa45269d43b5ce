# One environment, .venv in this clone, at the versions of constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help trace test test-matrix check lint types format golden models bench bench-faults bench-toolkits toolkits clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests share the cores; more workers than cores only take memory.
WORKERS ?= 2

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,tico,plot,gguf,pandas,onnx]'
	@touch $(READY)

trace: $(READY) ## set up, and trace a real wrapped model with a real bug
	$(BIN)/qtrace run configs/qwen3_vl_mask_bug.yaml

test: $(READY) ## set up, and run the tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-matrix: $(READY) ## capture under an older transformers, compare with this one
	$(BIN)/python tools/matrix.py .cache/matrix

check: lint types test ## what CI runs: lint, types, tests

lint: $(READY) ## ruff: lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict, on package, tests and benchmarks
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(READY) ## rewrite the golden files from what is printed now
	QTRACE_UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q tests -k golden

models: $(READY) ## download and convert the real models (SmolLM2-135M, MiniLM) into .cache/qtrace
	$(BIN)/python tools/models.py

bench: $(READY) ## measure speed and memory, and write bench/results
	$(BIN)/python -m bench

bench-faults: $(READY) ## score qtrace on injected faults, and write bench/results
	$(BIN)/python -m bench.faults

toolkits: $(READY) ## make an environment for each toolkit, over the project's own, in .cache/toolkits
	$(BIN)/python -m bench.toolkits.environments .cache/toolkits

bench-toolkits: $(READY) ## wrap models by every toolkit that has an environment, and write docs/toolkits.md
	$(BIN)/python -m bench.toolkits

clean: ## remove the environment and every cache but the models
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
