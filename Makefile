# make demo    one job from a teacher to a report, set-up included
# make test    everything CI runs, set-up included
# Both need Python 3.11 or newer and nothing else; what they install lies in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Threads that spin while they wait are a little faster on idle cores, and ten times slower on busy ones.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo demo-quick demo-full lint check test test-slow clean

demo: $(VENV)/.train
	$(BIN)/kdbench run tinystories

demo-quick: $(VENV)/.train
	$(BIN)/kdbench run tinystories --quick --out runs/tinystories-quick

demo-full: $(VENV)/.train
	$(BIN)/kdbench run tinystories --profile full --out runs/tinystories-full

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Files of tests side by side, each process with a thread of its own.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -q -m "not medium and not slow"

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdbench needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras: the second run of a target installs nothing.
$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.train
