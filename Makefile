# `make` lists what there is. All targets share one virtual environment, .venv, which the first of them sets up.

PYTHON ?= python3.11 python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
FLOOR := .venv-floor

.DEFAULT_GOAL := help
.PHONY: help quickstart demo test test-floor lint docs bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(READY) ## Train and compare a plain and a two-stage ViT on made images: runs/quickstart
	@$(PY) study.py studies/quickstart.yaml --out runs/quickstart

demo: $(READY) ## Open a page on the quick start's run: take parts away, watch the prediction change
	@$(PY) -m commands.demo --run runs/quickstart/two_stage-seed0 runs/quickstart/vit-seed0

test: $(READY) ## Run all tests, the slow ones too (a plain `pytest` runs the fast ones)
	@$(PY) -m pytest -m "slow or not slow" -n 2 --dist worksteal

test-floor: $(FLOOR)/.ready ## Run the fast tests with the oldest torch that pyproject.toml allows, in .venv-floor
	@$(FLOOR)/bin/python -m pytest -n 2 --ignore=tests/project

lint: $(READY) ## Check style and formatting (ruff) and types (mypy)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy

docs: $(READY) ## Build the documentation as a site: site/index.html; a warning or a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

bench: $(READY) ## Measure a training step: speed and memory
	@$(PY) -m benchmarks.train_step

clean: ## Remove caches and build leftovers; keeps .venv, data, weights and runs
	@rm -rf build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Order-only: a newer interpreter does not make the installed packages stale, newer requirements do.
$(READY): requirements.lock | $(VENV)/bin/pip
	@echo "Installing the pinned packages into $(VENV) (the first time: about 3 GB to download, some minutes) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(FLOOR)/.ready: $(FLOOR)/requirements.txt | $(VENV)/bin/pip
	@$(PY) -m venv $(FLOOR)
	@$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The requirements of torch are exact versions: they follow from its own.
$(FLOOR)/requirements.txt: constraints.txt pyproject.toml
	@mkdir -p $(FLOOR)
	@grep -Ev '^(torch|torchvision|triton|setuptools|cuda-.*|nvidia-.*)==' constraints.txt > $@
	@sed -n 's/^ *"\(torch\|torchvision\)>=\([0-9.]*\)".*/\1==\2.*/p' pyproject.toml >> $@

$(VENV)/bin/pip:
	@for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version) ..."; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: Python 3.11 or newer is needed; tried: $(PYTHON). Name yours: make PYTHON=/path/to/python3" >&2; exit 1
