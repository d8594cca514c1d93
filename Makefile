# make serve            the server, from nothing but Python 3.11 or newer (PORT=8123 MODEL=... as you like;
#                       TORCH=cpu or cuda for that build of PyTorch, by default the one that fits the machine)
# make test             every test
# make loadtest         users against a server: DURATION=2m USERS=4 WORKLOAD=mix SHAPE=steady, HOST=... for one that runs
# make clients          client libraries against a server that runs with --backend reference --dtype float32
#                       (HOST=http://127.0.0.1:8000)
# make check            format, lint, types, tests

PYTHON ?= python3
PORT ?= 8000
MODEL ?=
TORCH ?= auto
HOST ?=
DURATION ?= 2m
USERS ?= 4
WORKLOAD ?= mix
SHAPE ?= steady
SCALE ?= auto
ARRIVALS ?= auto
RATE ?=
WARMUP ?= auto
DATASET ?=
API ?= chat
GOALS ?= loadtests/goals.toml
RESULTS ?= build/loadtest
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: serve test loadtest clients check format lint types clean

serve: $(VENV)/.installed
	@exec $(BIN)/headlight serve $(MODEL) --port $(PORT)

# Three processes for two cores, since a quarter of the tests' time they wait; a file's tests stay together. Threads of
# torch that spin while they wait would take the cores from each other.
test: $(VENV)/.installed-test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

loadtest: $(VENV)/.installed-loadtest
	@$(BIN)/python -m loadtests --host '$(HOST)' --model '$(MODEL)' --users $(USERS) --duration $(DURATION) \
		--workload $(WORKLOAD) --scale $(SCALE) --shape $(SHAPE) --arrivals $(ARRIVALS) --rate '$(RATE)' --warmup $(WARMUP) \
		--dataset '$(DATASET)' --api $(API) --goals '$(GOALS)' --results '$(RESULTS)'

clients: build/clients/.installed build/clients/node/.installed build/clients/expected.json
	HEADLIGHT_CLIENTS_NODE='$(CURDIR)/build/clients/node' HEADLIGHT_CLIENTS_EXPECTED='$(CURDIR)/build/clients/expected.json' \
		HEADLIGHT_CLIENTS_URL='$(or $(HOST),http://127.0.0.1:$(PORT))' build/clients/bin/python -m pytest -c /dev/null \
		--rootdir tests/clients --confcutdir tests/clients -p no:cacheprovider tests/clients $(ARGS)

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
	@sh deploy/install_torch.sh $(BIN)/python '$(TORCH)'
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-loadtest: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[loadtest]'
	@touch $@

build/clients/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv build/clients
	build/clients/bin/python -m pip --disable-pip-version-check install --requirement $<
	@touch $@

# Without npm the tests of JavaScript's clients are skipped.
build/clients/node/.installed: tests/clients/vercel/package.json tests/clients/vercel/ask.js
	@mkdir -p build/clients/node && cp $^ build/clients/node
	if command -v npm >/dev/null; then npm install --prefix build/clients/node; fi
	@touch $@

# The numbers that a client has to get are computed in the other environment, which has torch.
build/clients/expected.json: tests/clients/expected.py tests/clients/choices.jsonl | build/clients/.installed $(VENV)/.installed-test
	$(BIN)/python -m tests.clients.expected >$@.new
	@mv $@.new $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@
