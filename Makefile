# make demo: install and answer a question. make test, make lint: what CI runs. make clean: remove what these make.
# Python 3.11 or newer:     make demo PYTHON=python3.12
# Another build of torch:   make demo TORCH="torch --index-url ADDRESS" (a CPU build saves gigabytes on Linux)

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
QUESTION ?= What did you think of the new Star Wars film?

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	@echo '$$ cards generate "$(QUESTION)" --method vanilla'
	@$(BIN)/cards generate "$(QUESTION)" --method vanilla
	@echo
	@echo '$$ cards generate "$(QUESTION)" --trace'
	@$(BIN)/cards generate "$(QUESTION)" --trace

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.torch: | $(VENV)/bin/python
	@echo "Installing $(TORCH) ..."
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	@echo "Installing cards ..."
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	@echo "Installing cards and what its tests need ..."
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
