# The two commands that a newcomer needs; each makes its own virtual environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-without-tensorflow

demo: $(VENV)/.installed  ## train, evaluate and report the embedded demo into runs/demo
	$(BIN)/python -m skin_jax.main --config configs/demo.py --workdir runs/demo
	$(BIN)/python -m skin_jax.eval.baselines --workdir runs/demo

test: $(VENV)/.installed-dev  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	XLA_FLAGS= $(BIN)/pytest -n auto --dist loadgroup -m as_compiled
	$(BIN)/pytest -n auto --dist loadgroup

test-without-tensorflow: $(VENV)-without-tensorflow/.installed-plain
	.ci/without_tensorflow $(VENV)-without-tensorflow/bin/python

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[tf]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)-without-tensorflow/.installed-plain: pyproject.toml | $(VENV)-without-tensorflow/bin/python
	$(VENV)-without-tensorflow/bin/python -m pip install --quiet -e .
	touch $@

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "skin_jax needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $*
