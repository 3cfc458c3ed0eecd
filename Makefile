# Every target sets up what it needs on a fresh machine with Python >= 3.10 and a compiler.
#   make demo   train a DCGAN on handwritten digits and write a grid of samples
#   make test   lint, type-check and test
#   make venv   the environment in .venv alone

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
RUN ?= runs/demo

.PHONY: demo test venv lint clean

venv: $(VENV)/.test-installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "fastgan needs Python 3.10 or newer: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first: the extension is built against the torch of this environment, not against one that
# a build of its own would download.
$(VENV)/.demo-installed: $(SOURCES) | $(BIN)/python
	$(PIP) 'setuptools>=77' wheel ninja pybind11 numpy torch
	$(PIP) --no-build-isolation -e '.[demo,plot]'
	@touch $@

$(VENV)/.test-installed: $(VENV)/.demo-installed
	$(PIP) --no-build-isolation -e '.[demo,plot,log,hub,test]'
	@touch $@

demo: $(VENV)/.demo-installed
	$(BIN)/python -m fastgan train digits --preset digits --out $(RUN)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
