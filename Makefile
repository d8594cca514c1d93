# make serve            the server, from nothing but Python 3.11 or newer (PORT=8123 MODEL=... as you like)
# make test             every test
# make check            format, lint, types, tests

PYTHON ?= python3
PORT ?= 8000
MODEL ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: serve test check format lint types clean

serve: $(VENV)/.installed
	@exec $(BIN)/headlight serve $(MODEL) --port $(PORT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

check: format lint types test

format: $(VENV)/.installed-test
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Headlight needs Python 3.11 or newer; set PYTHON=... to one." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@
