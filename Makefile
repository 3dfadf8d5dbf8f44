# Everything a person types. `make help` explains; the programs behind it are the command line `modelyard`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_FOR_TESTS := $(VENV)/.installed-for-tests
PIP := $(BIN)/pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# May also stand in .env, where the other settings are.
MODELYARD_TORCH_INDEX ?= $(shell sed -n 's/^MODELYARD_TORCH_INDEX=\([^ \#]*\).*/\1/p' .env 2>/dev/null)

.PHONY: run
run: up ## Start everything, run the main job, leave everything up
	@$(BIN)/modelyard run digits

.PHONY: up
up: $(INSTALLED) ## Start the embedded stack: store, MLflow, Prefect, worker, endpoint
	@$(BIN)/modelyard up

.PHONY: down
down: ## Stop the embedded stack; its data stays
	@if [ -x $(BIN)/modelyard ]; then $(BIN)/modelyard down; else echo "nothing is installed, so nothing runs"; fi

.PHONY: status
status: $(INSTALLED) ## Show every part: state, process, address, memory
	@$(BIN)/modelyard status

.PHONY: logs
logs: $(INSTALLED) ## Show the last lines of every part's log
	@$(BIN)/modelyard logs

.PHONY: test
test: $(INSTALLED_FOR_TESTS) ## Run all tests on a stack of their own
	@OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist loadscope  # threads of three processes would fight for the cores

.PHONY: check
check: $(INSTALLED_FOR_TESTS) ## Format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check
	$(BIN)/lint-imports

.PHONY: bench
bench: $(INSTALLED_FOR_TESTS) ## Measure against peers and limits
	@$(BIN)/python -m benchmarks

.PHONY: soak
soak: $(INSTALLED_FOR_TESTS) ## Run the long tests
	@$(BIN)/pytest -m soak

.PHONY: clean
clean: ## Stop the stack; delete its data (asks first) and what was installed
	@if [ -x $(BIN)/modelyard ]; then $(BIN)/modelyard clean; fi
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Modelyard needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null | head -n 1 | grep . || echo missing);" \
		"name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
ifneq ($(strip $(MODELYARD_TORCH_INDEX)),)
	@echo "Installing torch $(TORCH) from the index of MODELYARD_TORCH_INDEX (a CPU build is about 200 MB, a CUDA build several GB)."
	@$(PIP) install --quiet --no-deps --index-url "$(MODELYARD_TORCH_INDEX)" torch==$(TORCH)
else
	@echo "Installing torch $(TORCH), the build of the default package index (a CPU build is about 200 MB, a CUDA build several GB;"
	@echo "MODELYARD_TORCH_INDEX=<url of an index> selects another), and the rest: about 2.5 minutes in all."
endif
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(INSTALLED_FOR_TESTS): $(INSTALLED)
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[test,dev]'
	@touch $@
