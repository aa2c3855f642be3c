# Everything runs in .venv, which `make venv` makes from a Python 3.11 and the exact versions of
# constraints.txt.
PYTHON ?= python3.11
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: venv demo test test-slow lint bench clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch .venv/installed

demo: venv
	$(BIN)/ftray demo

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: venv
	$(BIN)/python -m pytest -m slow

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

bench: venv
	$(BIN)/python benchmarks/layout.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
