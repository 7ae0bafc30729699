# make demo   from shipped photos to a released model     make ui   the graph in a browser
# make test   lint, types and every test                  Each makes .venv and installs what it needs.
.PHONY: demo ui test lint clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

demo: .venv/installed
	@$(BIN)/srd demo

ui: .venv/installed
	@$(BIN)/srd ui

test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	@echo "Installing (a few minutes the first time: PyTorch is large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[export]'
	@touch $@

.venv/installed-dev: .venv/installed pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[export,dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
