# AlgoMart 算法超市. `make` alone lists the targets.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
EXTRAS := market,postgres,registry,grpc,otel,workshop,notebooks,dev

.DEFAULT_GOAL := help
.PHONY: help setup setup-core setup-system assets up test check tour bench bench-ledger kill-nine simulate coverage conformance triton-examples overload soak protos clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# --- installing ---------------------------------------------------------------------------------------------------
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install -q -c requirements.lock -e '.[market,postgres,registry,grpc]'
	@touch $@

$(VENV)/.full: $(VENV)/.core
	$(PIP) install -q torch==2.13.0
	$(PIP) install -q -c requirements.lock -e '.[$(EXTRAS)]'
	@touch $@

setup-system:
	@bash .ci/system-packages

setup-core: $(VENV)/.core assets
setup: setup-system $(VENV)/.full assets  ## Make .venv with everything, and the system packages when root

assets: marketplace/web/static/vendor/.done
marketplace/web/static/vendor/.done: package.json package-lock.json
	npm ci --silent --no-fund --no-audit
	@mkdir -p $(@D)
	cp node_modules/htmx.org/dist/htmx.min.js $(@D)/
	@touch $@

# --- running ------------------------------------------------------------------------------------------------------
up: setup-core  ## Start the market on http://127.0.0.1:8000 (the workshop's packages follow in the background)
	@bash .ci/finish-setup & exec $(BIN)/algomart up

test: setup check  ## Install everything, check and pass the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(VENV)/.full  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tour: setup  ## The main job against a fresh market, with a receipt
	$(BIN)/algomart tour

bench: setup  ## Ratios against peers and the bare reference, side by side
	$(BIN)/python -m tests.bench

bench-ledger: setup  ## Charged calls a second, a rebuild of ten million entries, a quarter of trade claimed and proved
	$(BIN)/python -m tests.bench.bench_ledger
	$(BIN)/python -m tests.bench.bench_rebuild
	$(BIN)/python -m tests.bench.bench_claims

overload: setup  ## Ten times the capacity of a node, and a noisy neighbour: what still gets done
	$(BIN)/python -m tests.load overload
	$(BIN)/python -m tests.load neighbour

SECONDS ?= 3600
soak: setup  ## Mixed load on a node for SECONDS (3600): no errors, flat memory
	$(BIN)/python -m tests.load soak --seconds $(SECONDS)

kill-nine: setup  ## 20 × kill -9 under 8 clients: nothing acknowledged is lost, nothing posted twice
	$(BIN)/python -m tests.killnine --kills 20 --clients 8 --json

STEPS ?= 1000000
SEEDS ?= 100
STORE ?= memory
simulate: setup  ## The seeded simulator: STEPS actions for each of SEEDS seeds on STORE (memory, sqlite, postgres)
	$(BIN)/python -m tests.simulator --steps $(STEPS) --seeds $(SEEDS) --store $(STORE)
	$(BIN)/python -m tests.simulator --plants

coverage: setup  ## Branch coverage of the ledger and the vouchers, at least 95%
	$(BIN)/python -m pytest -q --cov=marketplace/ledger --cov=marketplace/vouchers --cov-branch --cov-fail-under=95 \
		tests/marketplace/test_{ledger,vouchers,leases,leases_machine,programmes,ingest,usage}.py

conformance: setup  ## The onnx backend cases, published and called over HTTP
	$(BIN)/python -m tests.conformance

EXAMPLES ?= triton-examples
triton-examples: setup  ## Triton's public client examples (*.py in EXAMPLES), unmodified, against a node
	$(BIN)/python -m tests.triton_examples --examples $(EXAMPLES)

protos: setup  ## The gRPC stubs, made again from serving/protocols/proto/*.proto
	cd serving/protocols/proto && $(abspath $(BIN))/python -m grpc_tools.protoc -I. --descriptor_set_out=stubs.binpb inference.proto health.proto

clean:  ## Remove what was built (never data)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache node_modules marketplace/web/static/vendor $(VENV)
