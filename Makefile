.DEFAULT_GOAL := help
SHELL := /bin/bash
# `make PYTHON=python3.12` names the interpreter that .venv is built with. Without it: python3, or the newest of the
# others where that is no supported one. pyproject.toml has the bounds too, which a test compares.
PYTHON ?=
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
IS_SUPPORTED := import sys, sysconfig; sys.exit(sys.implementation.name != "cpython" \
	or not (3, 11) <= sys.version_info[:2] <= (3, 14) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
# First on PATH, so that the stages which DVC starts run under this environment's Python.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help
help: ## Print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
		awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: .venv/installed ## Build .venv from requirements.txt; make a git repository where there is none
	@test -z "$(PYTHON)" || test "$$($(PYTHON) --version)" = "$$(.venv/bin/python --version)" || \
		{ echo "error: .venv has $$(.venv/bin/python --version): remove it to build it with $(PYTHON)" >&2; exit 1; }
	@grep -qsF "$(CURDIR)/.venv/bin/" .venv/bin/dvc || \
		{ echo "error: .venv was built in another folder or is incomplete: remove it and run make again" >&2; exit 1; }
	@git rev-parse --git-dir >/dev/null 2>&1 || git init -q
	@git config user.email >/dev/null || \
		{ git config user.name "image-classifier" && git config user.email "image-classifier@localhost"; }
	@git rev-parse -q --verify HEAD >/dev/null || { git add -A && git commit -qm "First commit"; }

.venv/installed: requirements.txt pyproject.toml
	@PATH="$${PATH#$(CURDIR)/.venv/bin:}"; for python in $(or $(PYTHON),$(PYTHONS)); do \
		"$$python" -c '$(IS_SUPPORTED)' 2>/dev/null && break; python=; \
	done; \
	test -n "$$python" || { echo "error: this needs CPython 3.11 to 3.14 (not free-threaded), and there is none as" \
		"$(or $(PYTHON),$(PYTHONS)): install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	if [ -x .venv/bin/python ] && [ "$$("$$python" --version)" != "$$(.venv/bin/python --version)" ]; then \
		echo "error: .venv has $$(.venv/bin/python --version): remove it to build it with $$python" >&2; exit 1; fi; \
	echo "$$python -m venv .venv"; "$$python" -m venv .venv || { rm -rf .venv; exit 1; }
	python -m pip install -q --require-hashes -r requirements.txt
	python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	python -m pip install -q --require-hashes -r requirements-test.txt
	touch $@

.PHONY: repro
repro: setup ## Run the pipeline: prepare, train, evaluate, export, report
	dvc repro
	@image-classifier summary

.PHONY: recipe
recipe: setup ## Write a recipe into params.yaml: make recipe NAME=finetune
	@image-classifier recipe $(or $(NAME),$(error which one? make recipe NAME=finetune; there are $(basename $(notdir $(wildcard recipes/*.yaml)))))

.PHONY: check
check: lint ## Lint, check types, and run the tests that need no trained pipeline
	python -m pytest -n 3 --dist worksteal -m "not full and not pipeline and not committed"

.PHONY: lint
lint: setup .venv/installed-test ## Lint, check spelling and types, and that README shows the committed run
	ruff check
	ruff format --check
	codespell
	mypy
	python -m pytest -m committed tests/pipeline/test_design.py

.PHONY: test
test: setup .venv/installed-test ## Run the tests
	python -m pytest -n 3 --dist worksteal -m "not full and not committed"

.PHONY: test-full
test-full: setup .venv/installed-test ## Run all tests, the long ones too
	INPUTS=many python -m pytest -n 3 --dist worksteal -m "not committed"

.PHONY: bench
bench: setup .venv/installed-test ## Run the short benchmarks; nothing else may run beside them
	python -m benchmarks.training --record
	python -m benchmarks.feeding --record
	python -m benchmarks.preparing --record
	python -m benchmarks.overhead --record

.PHONY: bench-full
bench-full: ## Run longer benchmarks too, 45 minutes: make bench-full IMAGES=folder of train.parquet and test.parquet
	@test -d "$(IMAGES)" || { echo "which images? make bench-full IMAGES=data/raw/cifar10"; exit 1; }
	$(MAKE) bench
	python -m benchmarks.precisions --record
	python -m benchmarks.parallel --record
	python -m benchmarks.scale --record
	python -m benchmarks.resolution $(IMAGES) --record

.PHONY: verify
verify: setup ## Run the committed state twice in two places and compare every byte
	image-classifier verify

.PHONY: audit
audit: setup .venv/installed-test ## Look the locked packages up in the list of known vulnerabilities
	image-classifier audit

.PHONY: lock
lock: ## Compile the lock files from pyproject.toml (needs uv)
	uv pip compile -q pyproject.toml $(LOCK) -o requirements.txt
	uv pip compile -q pyproject.toml --group test -c requirements.txt $(LOCK) -o requirements-test.txt
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header

.PHONY: ui
ui: setup ## Open MLflow on http://127.0.0.1:5000
	@image-classifier ui
