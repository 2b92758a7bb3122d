# Every target begins with the virtual environment; it is built again only when what it holds changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.stamp
export LIGHTNING_KD_ASSETS ?= $(CURDIR)/assets
# what docs/evidence/dylora.md recommends over the paper's settings
RECOMMENDED := --model.update full --model.scaling alpha/R
NOT_HERE := not offline and not gpu and not paper

.PHONY: help setup demo test test-fast test-offline lint type format readme assets assets-llm clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(STAMP) ## .venv with the pinned dependencies and this project, editable

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 on the PATH; pass one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: assets ## DyLoRA on real sentences, offline: train, compare the ranks, export
	$(BIN)/python recipes/dylora_glue.py --config configs/overlays/offline.yaml $(RECOMMENDED)

test: setup ## all tests that need neither network nor assets (under ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "$(NOT_HERE)" $(PYTEST_ARGS)

test-fast: setup ## the same without the slow and the two-process ones (under two minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-offline: assets assets-llm ## tests on the real models and data of the assets folder
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "offline and not gpu" --timeout=900 $(PYTEST_ARGS)

lint: setup ## style and spelling
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/codespell

type: setup ## mypy --strict
	$(BIN)/mypy

format: setup ## fix what can be fixed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

readme: setup ## rewrite the README's table of methods
	$(BIN)/python -m lightning_kd.paper README.md

assets: setup ## fetch the offline models and data once
	$(BIN)/lightning-kd assets

assets-llm: setup ## SmolLM2, the offline language model (98 MB, 540 MB unpacked)
	$(BIN)/lightning-kd assets smollm2

clean: ## remove what the tools made; keeps assets/ and runs/
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
