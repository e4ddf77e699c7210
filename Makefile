# Everything a person types. `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
EXPERIMENT ?= digits_noisy_student
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.complete

.PHONY: help setup experiment test cluster-test lint bench report clean

help: ## this list
	@echo "Tutelage: train image classifiers from few labels"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## install into .venv (about 6 GB; nothing outside the folder)

# The stamp is written last: an installation that was cut short is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found; 3.11 to 3.13 is needed: make setup PYTHON=python3.12")'
	@echo "installing into .venv (about 6 GB, a few minutes)"
	@rm -f $(STAMP)
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@touch $(STAMP)

experiment: $(STAMP) ## run or resume EXPERIMENT=digits_noisy_student, with ARGS='key=value ...'
	@$(BIN)/tutelage train experiment=$(EXPERIMENT) $(ARGS)

test: $(STAMP) ## the test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not cluster'

cluster-test: $(STAMP) ## tests on a SLURM of two virtual nodes, and on Ray; apt install slurm-wlm munge
	@$(BIN)/python -m pytest -m cluster

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP) ## speed: of augmentation and loading against others, of a run against a plain loop, of distillation, of k-NN, of scanning, of labelling, of a large pool, of two processes, of going on
	@$(BIN)/python benchmarks/augmentation.py
	@$(BIN)/python benchmarks/loader.py
	@$(BIN)/python benchmarks/overhead.py
	@$(BIN)/python benchmarks/distillation.py
	@$(BIN)/python benchmarks/neighbours.py
	@$(BIN)/python benchmarks/scan.py
	@$(BIN)/python benchmarks/labelling.py
	@$(BIN)/python benchmarks/pool.py
	@$(BIN)/python benchmarks/processes.py
	@$(BIN)/python benchmarks/resume.py

report: $(STAMP) ## write the reports of RUN=outputs/EXPERIMENT/NAME again
	@$(BIN)/tutelage report $(RUN)

clean: ## remove .venv and caches; outputs/ stays
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
