# Each target makes the virtual environment that it needs where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo docs notebook test test-fast test-without-tensorflow lint format types settings

demo: $(VENV)/.installed  ## train, evaluate and report the embedded demo into runs/demo
	$(BIN)/python -m skin_jax.main --config=demo --workdir=runs/demo
	$(BIN)/python -m skin_jax.eval.baselines --workdir=runs/demo

test: lint types  ## lint, types, tests
	XLA_FLAGS= $(BIN)/pytest -n auto --dist loadgroup -m as_compiled
	$(BIN)/pytest -n auto --dist loadgroup

# What compiles little: the files are named, so that a new one is in only if it is quick.
FAST = tests/base tests/data tests/report tests/test_config.py tests/test_layering.py \
  tests/eval/test_comparison.py tests/eval/test_metrics.py tests/eval/test_quality.py \
  tests/eval/test_tables.py tests/tasks/test_optimizers.py tests/training/test_history.py
SLOW = tests/data/test_pipeline.py tests/data/test_store.py

test-fast: $(VENV)/.installed-dev  ## what needs no training: under a minute on two cores
	$(BIN)/pytest -n auto --dist loadgroup $(FAST) $(SLOW:%=--ignore=%)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

settings: $(VENV)/.installed  ## write the table of settings into docs/settings.md
	$(BIN)/python .ci/settings.py

docs: $(VENV)/.installed-docs  ## the documentation site, into runs/site
	$(BIN)/python -m mkdocs build --quiet

notebook: $(VENV)/.installed $(VENV)/.installed-docs  ## run notebooks/quickstart.ipynb, into runs/
	$(BIN)/python -m nbconvert --execute --to=notebook --output-dir=runs notebooks/quickstart.ipynb

test-without-tensorflow: $(VENV)-without-tensorflow/.installed-plain
	.ci/without_tensorflow $(VENV)-without-tensorflow/bin/python

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[tf]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

$(VENV)-without-tensorflow/.installed-plain: pyproject.toml | $(VENV)-without-tensorflow/bin/python
	$(VENV)-without-tensorflow/bin/python -m pip install --quiet -e .
	touch $@

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "skin_jax needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $*
