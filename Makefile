# Two commands: `make demo` sets up and builds the example bundle, `make test` runs the tests.
# Both may be repeated: the environment is made again only when pyproject.toml changed.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# torch's CPU build is preferred where the package index offers it under this version.
TORCH ?= torch==2.13.0
# Processes that run tests; each takes whole files of tests, which share what they build.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint check clean

demo: $(VENV)/.ready
	$(BIN)/edge-exporter build examples/fashion_mnist/plan.toml

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test lint

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) bundles
