# longvid: the commands that a newcomer needs.  `make render` and `make test` set up .venv by themselves.
#
#   make render PROMPT="a red ball bounces over green hills" SECONDS=60
#   make render PROMPT="a red ball bounces[20s] | a blue star drifts over the sea[20s]" METHOD=rolling-forcing SEED=3
#   make test | check | test-gpu | bench | docs | serve

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help render serve test test-gpu test-browser check format bench docs clean

PROMPT ?= a red ball bounces over green hills
# The origin decides: a shell's own SECONDS counter is not meant.
ifneq ($(origin SECONDS),command line)
SECONDS := 60
endif
SEED ?= 0
METHOD ?=
MODEL ?=
OUT ?= out
ARGS ?=
PIP_ARGS ?=
TESTS ?=

# Handed over in the environment, so that no quote, dollar or bar in a prompt is read by the shell.
export LONGVID_PROMPT := $(value PROMPT)
export LONGVID_SECONDS := $(SECONDS)
export LONGVID_OUT := $(value OUT)

# The embedded model is so small that a second thread mostly waits for the first, and on a busy machine stalls it.
ifeq ($(MODEL),)
export OMP_NUM_THREADS ?= 1
endif

BIN := .venv/bin
# Tests are single-threaded. Each worker loads PyTorch, about 1 GB, so that more than four are seldom worth it.
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	if "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; \
	then echo "$$p"; break; fi; done)

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "longvid needs Python 3.11, 3.12 or 3.13 with venv; set PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv

# Two stamps: rendering needs less than testing. pyproject.toml newer than a stamp installs again.
.venv/.longvid: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e .
	@touch $@

.venv/.longvid-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[dev]"
	@touch $@ .venv/.longvid

render: .venv/.longvid ## PROMPT="..." SECONDS=60 [SEED= METHOD= MODEL= OUT= ARGS=]: a video in out/
	@if [ "$$LONGVID_OUT" = out ]; then mkdir -p out; fi
	@$(BIN)/longvid render --seconds "$$LONGVID_SECONDS" --seed "$(SEED)" --out "$$LONGVID_OUT" \
		$(if $(METHOD),--method "$(METHOD)") $(if $(MODEL),--model "$(MODEL)") $(ARGS) -- "$$LONGVID_PROMPT"

serve: .venv/.longvid-dev ## Serve a viewer page that streams video as it is made
	$(BIN)/longvid serve $(ARGS)

test: .venv/.longvid-dev ## The test suite on the CPU [TESTS=path ARGS=-x]
	$(BIN)/python -m pytest $(WORKERS) $(TESTS) $(ARGS)

test-gpu: .venv/.longvid-dev ## Tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(TESTS) $(ARGS)

test-browser: .venv/.longvid-dev ## The viewer in a headless Chromium; skipped, with the reason, where there is none
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[browser]"
	$(BIN)/python -m pytest -m browser -rs $(TESTS) $(ARGS)

check: .venv/.longvid-dev ## Lint, format, types, spelling, sizes, structure
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy longvid/cache longvid/pipelines/schedules
	$(BIN)/codespell
	$(BIN)/python scripts/check_sizes.py
	$(BIN)/python scripts/structure.py --check

format: .venv/.longvid-dev ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.longvid-dev ## Speed and memory, as JSON in benchmarks/results
	$(BIN)/python benchmarks/render.py $(ARGS)

docs: .venv/.longvid-dev ## Write docs/structure.md anew from the modules' first lines
	$(BIN)/python scripts/structure.py

clean: ## Remove caches and builds; keeps .venv and out/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find longvid tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
