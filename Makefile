# The commands that CI runs. Each target makes .venv first if it is not there.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: test matrix lint types docs bench wheel full clean
.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -e ".[dev]" && touch $@

test: .venv/dev
	$(BIN)/pytest -n auto --dist loadfile

matrix: .venv/dev
	$(BIN)/python .ci/matrix.py

lint: .venv/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/pip install -q -e ".[docs]" && $(BIN)/python -m sphinx -W --keep-going -n -q -j auto -c docs . docs/_build/html && $(BIN)/python docs/check.py docs/_build/html

bench: .venv/dev
	$(BIN)/xnn bench

wheel: .venv/dev
	$(BIN)/python .ci/wheel.py

full:
	bash .ci/full

clean:
	rm -rf .venv build dist docs/_build docs/api *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
