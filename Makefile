# Everything a developer types. `make` alone lists the targets; each sets up what it needs and can be run again at any time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
# More arguments for the tool behind a target: make test ARGS='-k explain -x'
ARGS ?=

say = @printf '==> %s\n'

# What an extension is made of. The generated C is not among it.
FASTPATH := $(wildcard setup.py lb/_fastpath/*.pyx lb/_fastpath/*.pxd lb/_fastpath/c/*)
# Stamps: the set-up is done again only when what it depends on has changed.
READY_RUN := $(VENV)/.ready-run
READY_TEST := $(VENV)/.ready-test
READY_BENCH := $(VENV)/.ready-bench
BUILT := $(VENV)/.built
SANITIZE_TREE := build/sanitize

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## build, then serve conf/demo on port 8080 (PORT=… for another)
	@exec $(BIN)/lb run --demo conf/demo --publish 80=127.0.0.1:$(PORT) $(ARGS)

.PHONY: test
test: build $(READY_TEST) ## build, then run all tests (ARGS='-k name' for some)
	$(say) "running the tests"
	@exec $(BIN)/pytest $(ARGS)

.PHONY: build
build: $(BUILT) ## set up the environment and build; leaves .venv/bin/lb

.PHONY: lint
lint: build $(READY_TEST) ## every linter and house rule, as the tests run them
	@exec $(BIN)/pytest -q tests/guards $(ARGS)

.PHONY: fmt
fmt: $(READY_TEST) ## format the Python sources and sort imports
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

.PHONY: types
types: $(READY_TEST) ## mypy --strict
	@exec $(BIN)/mypy $(ARGS)

.PHONY: docs
docs: build $(READY_TEST) ## run the commands of README and docs/ and compare what they print
	@exec $(BIN)/pytest -q tests/docs $(ARGS)

.PHONY: tables
tables: build $(READY_TEST) ## write the tables of docs/ again, from the code
	@exec $(BIN)/python -m tests.docs.tables

.PHONY: schema
schema: build ## write conf/lb.schema.json again, from the types
	@$(BIN)/lb schema > conf/lb.schema.json.new && mv conf/lb.schema.json.new conf/lb.schema.json

.PHONY: man
man: build ## write the manual page to build/lb.1
	@mkdir -p build && $(BIN)/lb man > build/lb.1
	@echo "build/lb.1: read it with man -l build/lb.1"

.PHONY: bench
bench: build $(READY_BENCH) ## measure against a bare relay and other proxies (bench/README.md)
	@exec $(BIN)/python -m bench $(ARGS)

# The tree is copied so that the instrumented extensions never stand where the ordinary ones do.
.PHONY: sanitize
sanitize: $(READY_TEST) ## run the wire tests on an AddressSanitizer and UBSan build
	$(say) "building with sanitizers in $(SANITIZE_TREE)"
	@mkdir -p $(SANITIZE_TREE)
	@tar -cf - --exclude='*.so' --exclude='lb/_fastpath/*.c' lb tests conf setup.py pyproject.toml README.md LICENSE | tar -xf - -C $(SANITIZE_TREE)
	@cd $(SANITIZE_TREE) && LB_SANITIZE=1 ../../$(BIN)/python setup.py --quiet build_ext --inplace
	$(say) "running the wire tests under the sanitizers"
	@exec scripts/sanitized $(SANITIZE_TREE) tests/wire tests/fastpath $(ARGS)

.PHONY: debug
debug: $(READY_RUN) ## build with -O0, assertions and bounds checks (make build goes back)
	$(say) "building for debugging"
	@rm -f $(BUILT) lb/_fastpath/*.so lb/_fastpath/*.c && touch $(VENV)/.debug
	@test -x $(BIN)/lb || $(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@LB_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --inplace --force

.PHONY: clean
clean: ## remove what was built, and the virtual environment
	@rm -rf build dist *.egg-info $(VENV) lb/_fastpath/*.so lb/_fastpath/*.c lb/_fastpath/*.html
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache

$(READY_RUN): pyproject.toml scripts/bootstrap
	@VENV=$(VENV) scripts/bootstrap run
	@touch $@

$(READY_TEST): pyproject.toml scripts/bootstrap $(READY_RUN)
	@VENV=$(VENV) scripts/bootstrap test
	@touch $@

$(READY_BENCH): pyproject.toml scripts/bootstrap $(READY_TEST)
	@VENV=$(VENV) scripts/bootstrap bench
	@touch $@

# The first build goes through pip, which leaves $(BIN)/lb; later ones compile only what changed.
$(BUILT): $(FASTPATH) $(READY_RUN)
	$(say) "building the data plane (the first time takes a minute)"
	@if rm $(VENV)/.debug 2>/dev/null; then rm -f lb/_fastpath/*.so lb/_fastpath/*.c; fi
	@if [ -x $(BIN)/lb ]; then \
	    $(BIN)/python setup.py --quiet build_ext --inplace; \
	else \
	    $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	fi
	@$(BIN)/lb --version
	@touch $@
