# Everything a developer runs. The first target that needs it makes .venv (see dev.py); nothing else has to be installed.
#   make demo ARGS="--nodes 6"     arguments for nmoe demo, nmoe bench federate, or pytest
#   make test PYTHON=python3.12    another Python, 3.11 or newer
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check types format lint imports pages rules bench docs fmt clean base dev

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 10

demo: base ## train ten nodes and let them answer together; writes runs/demo
	@$(BIN)/nmoe demo $(ARGS)

test: dev ## run the tests, two at a time (without those marked slow, gpu, net, peer)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: dev ## all that must hold besides the tests: types, format, lint, imports, pages, file rules
	@$(MAKE) --no-print-directory --jobs 2 types format lint imports pages rules

types:
	$(BIN)/mypy
format:
	$(BIN)/ruff format --check .
lint:
	$(BIN)/ruff check .
imports:
	$(BIN)/lint-imports
pages:
	$(BIN)/python docs/generate.py --check
rules:
	$(BIN)/python -m pytest -q tests/test_rules.py

bench: dev ## seconds per round against Flower's simulation and a bare loop
	@$(BIN)/nmoe bench federate $(ARGS)

docs: dev ## write docs/methods from the docstrings
	$(BIN)/python docs/generate.py

fmt: dev ## format, and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv, caches and runs
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

base:
	@$(PYTHON) dev.py setup

dev:
	@$(PYTHON) dev.py setup --extra dev
