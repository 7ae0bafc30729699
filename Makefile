# make demo   from shipped photos to a released model     make ui   the graph in a browser
# make test   lint, types and every test                  Each makes .venv and installs what it needs.
.PHONY: demo ui test lint clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# uv unpacks PyTorch's 5 GB once, into its cache, and links them; pip writes them twice.
# The system's certificates and the long time-out are for companies' proxies and slow mirrors.
INSTALL := UV_NATIVE_TLS=1 UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install --quiet --python $(BIN)/python

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

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(BIN)/uv: $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: $(BIN)/uv pyproject.toml
	@echo "Installing (a few minutes the first time: PyTorch is large) ..."
	@$(INSTALL) -e '.[export]'
	@touch $@

.venv/installed-dev: .venv/installed pyproject.toml
	@$(INSTALL) -e '.[export,dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
