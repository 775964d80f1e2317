# Everything a fresh machine needs is installed here; nothing is expected to be there but Python 3.11 or 3.12.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
  $$p -c 'import sys; raise SystemExit(not ((3,11) <= sys.version_info[:2] <= (3,12)))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_STAMP := $(VENV)/.installed-run
export DS_ACCELERATOR ?= cpu
export RAY_TRAIN_ENABLE_PREEMPTION_WATCHER ?= 0
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow wheel lock image-here lint sim install clean help

help:  ## what can be done here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(STAMP)  ## create .venv and install everything that development needs

# What a run needs, and the two packages that bring the demo's data.
$(RUN_STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 2; }
	@echo "Creating $(VENV) with $(PYTHON) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing torch ..."
	@$(BIN)/python -m pip install --quiet torch==2.13.0 setuptools wheel ninja -c constraints.txt
	@echo "Installing Ray, DeepSpeed, transformers and the rest of what a run needs (a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[demo]' -c constraints.txt
	@touch $(RUN_STAMP)

$(STAMP): $(RUN_STAMP)
	@echo "Installing what tests, lint and documentation need ..."
	@$(BIN)/python -m pip install --quiet --editable '.[dev]' -c constraints.txt
	@touch $(STAMP)

demo: $(RUN_STAMP)  ## learn four tasks and transfer to a fifth, on this machine
	$(BIN)/python -m atlas_dist demo

# A process a core, four at most, each with one thread; which tests share one: tests/conftest.py.
PARALLEL ?= -n logical --maxprocesses 4 --no-loadscope-reorder
test: install  ## every test that needs no GPU (one after the other: make test PARALLEL=)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" --durations=10 $(PARALLEL)

test-slow: install  ## the long ones
	$(BIN)/python -m pytest -m "slow and not gpu"

wheel: install  ## build dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --no-isolation

lock: install  ## pin what the image installs by hash anew: after a change of constraints.txt or of what we depend on
	$(BIN)/python cluster/image/lock.py

image-here: install  ## build the cpu image into build/image without a registry, and run the toy experiment in it (root; Debian's tools)
	$(BIN)/python -m cluster.image.here

SEEDS ?= 50000
sim: install  ## simulate the ledger protocol under faults: make sim SEEDS=50000
	$(BIN)/python -m tests.chaos.sim --seeds $(SEEDS)

lint: install  ## ruff, mypy --strict, import-linter, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what this Makefile made
	rm -rf $(VENV) build dist *.egg-info demo-run
