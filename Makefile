# Everything runs out of .venv, which is made from the two lock files. 'make help' lists the targets.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; echo python3)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
LOCKED := install -qq --no-deps --no-build-isolation --require-hashes
CODE := app workers broadcaster

# How many processes share the tests of 'make test', each with servers of its own; 0: the tests run one after the other, in one process.
WORKERS ?= 2

# Without compiled modules on disk, each of the hundreds of processes that tests start would compile them anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up test faults chaos test-containers bench lint format types imports check lock clean

help: ## List the targets.
	@echo "usage: make TARGET   (PYTHON=python3.12 picks the interpreter, VENV=folder the environment)"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv from the lock files (the other targets do it by themselves).

$(STAMP): requirements.lock requirements-build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is none: install one, or name it, as in 'make setup PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing $$(grep -c '^[a-z0-9]' requirements.lock) locked packages into $(VENV) (a minute or two the first time)"
	@$(PIP) $(LOCKED) -r requirements-build.lock
	@$(PIP) $(LOCKED) -r requirements.lock
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "Ready: $(BIN)/dedup --help"

demo: $(STAMP) ## Start servers, broadcaster, bridge, three listeners and Flower; feed real flights; audit; stop.
	@$(BIN)/dedup demo

up: $(STAMP) ## The same without an end: everything stays up until Ctrl-C.
	@$(BIN)/dedup up

test: $(STAMP) ## All tests but the fault suite, a few minutes, two at a time (WORKERS=0: one; ARGS="-k claim" adds to pytest's arguments).
	@$(BIN)/pytest tests --ignore=tests/faults -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

faults: $(STAMP) ## The fault suite: kills, pauses and cuts on real processes and servers.
	@$(BIN)/pytest tests/faults $(ARGS)

chaos: $(STAMP) ## Random faults for MINUTES=10 with SEED=1 while events come in; prints what it does, audits at the end.
	@DEDUP_CHAOS_MINUTES=$(or $(MINUTES),10) DEDUP_CHAOS_SEED=$(or $(SEED),1) $(BIN)/pytest tests/faults/test_chaos.py -q $(ARGS)

test-containers: $(STAMP) ## The tests that need a Docker engine: the image, docker-compose.yml, pytest-celery, a fresh machine.
	@$(BIN)/pytest -m containers tests/celery tests/containers $(ARGS)

bench: $(STAMP) ## All benchmarks, up to half an hour (NAME=throughput for one; ARGS="--quick --json" adds options), on systems of their own.
	@$(BIN)/python -m bench $(NAME) $(ARGS)

lint: $(STAMP) ## Style and formatting (ruff).
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## Mend style and formatting where ruff can.
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

types: $(STAMP) ## Types (mypy --strict).
	@$(BIN)/mypy $(CODE) bench celeryconfig.py tests/celery/local_nodes.py

imports: $(STAMP) ## Which package may import which (import-linter).
	@$(BIN)/lint-imports --no-logo

check: lint types imports test ## lint, types, imports and test.

lock: $(STAMP) ## Write the lock files anew, with the newest versions that pyproject.toml allows.
	@$(BIN)/uv pip compile --quiet --upgrade --group build --output-file requirements-build.lock
	@$(BIN)/uv pip compile --quiet --upgrade --all-extras pyproject.toml --output-file requirements.lock
	@$(BIN)/uv pip compile --quiet --constraint requirements.lock pyproject.toml --output-file requirements-runtime.lock
	@echo "Locked; 'make setup' installs it."

clean: ## Remove .venv and caches; data in .dedup stays.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find $(CODE) tests -name __pycache__ -prune -exec rm -rf {} +
