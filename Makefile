# Everything a person or CI does here. The interpreter of the virtual environment comes from PYTHON (3.11 or newer).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
WIRE := gateway_schema/wire
PACKAGES := gateway_schema control_plane data_plane cli migrations
NAME ?= model-based-routing
ARGS ?=
# Test files are shared out among this many processes; 0 runs them one after another in one.
PROCESSES ?= auto

.PHONY: up down test bench lint types proto migrate lock help
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

up: $(VENV)/.installed ## install, start a gateway and apply the recipe (NAME=…, ARGS="--proxy-port 9000 …")
	@$(VENV)/bin/recipe up $(NAME) $(ARGS)

down: $(VENV)/.installed ## take it all down again
	@$(VENV)/bin/recipe down $(NAME) $(ARGS)

test: $(VENV)/.tested ## run the whole suite (ARGS="-k name" for a part)
	@$(PY) -m pytest --numprocesses $(PROCESSES) --dist loadfile $(ARGS)

bench: $(VENV)/.tested ## measure, beside nginx in one run; prints and stores a table (PEERS=1 adds others)
	@$(PY) -m tests.benchmarks $(ARGS)

lint: $(VENV)/.tested ## style and import rules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports

types: $(VENV)/.tested ## strict types on the packages
	@$(PY) -m mypy

proto: $(VENV)/.tested ## make the stubs in gateway_schema/wire from proto/
	@$(PY) -m grpc_tools.protoc -Iproto --python_out=$(WIRE) --pyi_out=$(WIRE) --grpc_python_out=$(WIRE) \
		proto/config.proto proto/analytics.proto
	@sed -i 's/^import \(config\|analytics\)_pb2 as/from gateway_schema.wire import \1_pb2 as/' $(WIRE)/*_pb2_grpc.py

migrate: $(VENV)/.installed ## bring the database of DATABASE_URL to the newest revision
	@$(PY) -m migrations

lock: $(VENV)/.tested ## pin what pyproject.toml allows to today's versions
	@$(VENV)/bin/pip-compile -q --extra test --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--no-header --allow-unsafe -o requirements.lock pyproject.toml

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Tandem needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with PYTHON=…")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "Installing into $(VENV) …"
	@$(VENV)/bin/pip install -q --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(VENV)/.tested: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "Installing into $(VENV), with the tests' tools …"
	@$(VENV)/bin/pip install -q --disable-pip-version-check -c requirements.lock -e '.[test]'
	@touch $(VENV)/.installed $@
