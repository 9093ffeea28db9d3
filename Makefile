# Every target makes the virtual environment and installs what is missing by itself. An option of the program is also a
# variable: OVERTONE_PORT=9000 make demo.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
BENCH_STAMP := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench soak clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch goes first and alone, at the version pyproject.toml pins: other packages then find it installed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Overtone needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet 'torch~=2.13.0'
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

demo: $(STAMP)  ## Merge eight fine-tunes of a chat model and serve them, routed, on http://127.0.0.1:8000
	$(BIN)/overtone demo

test: lint  ## Lint, then run the tests, in one process more than cores
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder --durations 10

lint: $(DEV_STAMP)  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP)  ## Let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_STAMP)  ## Measure: a short form of every benchmark into benchmarks/results/
	$(BIN)/python -m benchmarks.suite

soak: $(BENCH_STAMP)  ## Ten minutes of mixed load, then hostile requests, against a real server; nothing may fail or leak
	$(BIN)/python -m benchmarks.soak --minutes 10 --json
	$(BIN)/python -m benchmarks.fuzz --requests 10000 --json
	$(BIN)/python -m benchmarks.clients --tiny --only schemathesis --json

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
