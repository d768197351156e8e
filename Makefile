# Everything runs in .venv, which `make setup` makes from the hashed lock file.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
# The server's wheel is for Python 3.10 to 3.12; the first of these that is one is taken. Yours: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && { command -v $$p; break; }; done)
# No index address stands in the lock file: pip takes the packages from wherever it is configured to.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
RESOLVE := $(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header --upgrade -q

.PHONY: help setup demo test lint types imports format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What to do next is said where it was asked for by itself, not where another target needs it.
setup: $(STAMP) ## Make .venv with everything in it (a few minutes the first time)
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "Ready. Next: . $(VENV)/bin/activate   (then: convoy doctor, convoy recipes, or make demo)",:)

$(STAMP): requirements.lock pyproject.toml deploy/system-packages.sh
	@test -n "$(PYTHON)" || { echo "Convoy's server needs Python 3.10, 3.11 or 3.12, and none was found: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@sh deploy/system-packages.sh "$(PYTHON)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing $$(grep -c '==' requirements.lock) packages into $(VENV); torch alone brings several GB, this takes a few minutes ..."
	@(while sleep 10; do printf '.'; done) & dots=$$!; $(PIP) install --require-hashes --no-deps -r requirements.lock; status=$$?; \
		kill $$dots; echo; exit $$status
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Train, export, validate, deploy, serve, classify, score: the main job on data that comes along
	@$(BIN)/convoy demo

# Files of tests run beside each other, one on each core; then, one by one, those that measure, or look at the whole machine: their
# files are named, since to look through all the others for them takes as long as some of them.
test: setup ## Run all tests (the real Triton server among them)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" -n logical --maxprocesses 4 --dist loadfile; beside=$$?; \
		$(BIN)/python -m pytest -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests); alone=$$?; exit $$((beside ? beside : alone))

lint: setup ## Check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## Check types (mypy, strict)
	@$(BIN)/mypy

imports: setup ## Check that imports run one way (import-linter)
	@$(BIN)/lint-imports --no-cache

format: setup ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: setup ## Resolve the dependencies anew into the lock files
	@$(RESOLVE) pyproject.toml --extra all --extra ray --group dev -o requirements.lock
	@$(RESOLVE) pyproject.toml --extra score --no-config -o deploy/requirements-client.lock
	@$(RESOLVE) deploy/requirements-build.in --no-config -o deploy/requirements-build.lock
	@$(RESOLVE) tests/integration/mlserver/requirements.in --no-config -o tests/integration/mlserver/requirements.lock

clean: ## Remove .venv, caches and what runs have made in this folder
	@rm -rf $(VENV) .venv-mlserver runs exports demo dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
