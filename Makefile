# Everything a person types. `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
EXPERIMENT ?= digits_noisy_student
ARGS ?=
# make BIN=FOLDER takes the Python there as it is: nothing is installed then
BIN := .venv/bin
STAMP := $(if $(filter .venv/bin,$(BIN)),.venv/.complete)
# measured: 8.2 on one AMD EPYC, 10.7 on another, which lacks AVX-512
CPU_MINUTES := 12
BENCHES := augmentation loader overhead distillation neighbours scan labelling pool processes resume time_left large_files predict

.PHONY: help setup experiment test test-slow test-gpu test-cluster lint docs tour bench bench-short bench-gpu report clean

help: ## this list
	@echo "Tutelage: train image classifiers from few labels"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## install into .venv (about 6 GB; nothing outside the folder)

# The stamp is written last: an installation that was cut short is done again.
.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found; 3.11 to 3.13 is needed: make setup PYTHON=python3.12")'
	@echo "installing into .venv (about 6 GB, a few minutes)"
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

experiment: $(STAMP) ## run or resume EXPERIMENT=digits_noisy_student, with ARGS='key=value ...'
	@$(BIN)/tutelage train experiment=$(EXPERIMENT) $(ARGS)

test: $(STAMP) ## the test suite, in minutes
	@$(BIN)/python tests/helpers/budget.py $(CPU_MINUTES) \
	  $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu and not cluster'

test-slow: $(STAMP) ## what takes longer and rarely breaks
	@$(BIN)/python -m pytest -n 2 -o timeout=900 --durations=12 -m slow

test-gpu: $(STAMP) ## what needs a CUDA device; BIN=FOLDER takes another Python than .venv's
	@PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m pytest -m gpu

test-cluster: $(STAMP) ## tests on a SLURM of two virtual nodes, and on Ray; apt install slurm-wlm munge
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations=12 -m cluster

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(STAMP) ## the documentation as a site: docs/_build/html/index.html
	@$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

tour: $(STAMP) ## run the notebook docs/tour.ipynb, which keeps its outputs
	@$(BIN)/python -m pytest -o timeout=900 --nbmake --nbmake-timeout=900 docs/tour.ipynb

bench: $(STAMP) ## speed against others and against plain loops
	@set -e; for name in $(BENCHES); do $(BIN)/python benchmarks/$$name.py; done

bench-short: $(STAMP) ## the same in short, to see that it runs
	@set -e; for name in $(BENCHES) gpu min_steps recipes; do \
	  echo "-- $$name"; BENCH=short $(BIN)/python benchmarks/$$name.py; done

bench-gpu: $(STAMP) ## a GPU: speed, exact resume, self-training, two processes; BIN=FOLDER takes another Python than .venv's
	@PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python benchmarks/gpu.py

report: $(STAMP) ## write the reports of RUN=outputs/EXPERIMENT/NAME again
	@$(BIN)/tutelage report $(RUN)

clean: ## remove .venv and caches; outputs/ stays
	@rm -rf .venv docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
