# Everything runs from .venv, which is built from pyproject.toml and constraints.txt and rebuilt when one of them changes.

PYTHON ?= python3.11
JOBS ?= 2
# For example https://download.pytorch.org/whl/cpu, where the default index offers only a torch with CUDA.
TORCH_INDEX ?=
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CARRIERS := mnist5k fashion_mnist shakespeare adult schools minilm healthtweets

.DEFAULT_GOAL := help
.PHONY: help .venv demo deploy-demo test integration faults soak mutants bench figures notebooks proto fmt clean

help:  ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(STAMP)  ## a virtual environment with all that the targets below need

$(STAMP): pyproject.toml constraints.txt
	@echo "confide: building .venv with $(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "confide: installing torch, the one large download"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "confide: installing confide and its tools"
	@$(PIP) --editable ".[dev]"
	@touch $@

demo: $(STAMP)  ## a private run in a minute: digits of 400 silos, claimed and measured epsilon
	$(BIN)/confide run simulations/configs/quickstart.yaml

deploy-demo: $(STAMP)  ## a server and three silos on this machine, over TLS, in two minutes
	$(BIN)/python -m simulations.deploying.demo

# One thread for each of the parallel workers: more would only take turns on the same cores.
test integration faults soak mutants notebooks: export OMP_NUM_THREADS := 1

test: $(STAMP)  ## format, lint, types, import arrows, then all tests that start no servers
	$(BIN)/ruff format --quiet --check .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not integration and not exhaustive" $(ARGS)

integration: $(STAMP)  ## tests with real processes, a browser and fetched data; nothing may be skipped
	@for name in $(CARRIERS); do \
		echo "confide: fetching $$name unless it is in the cache"; $(BIN)/confide data fetch $$name || exit 1; \
	done
	CONFIDE_INTEGRATION=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -rs -m "(integration or carrier) and not exhaustive" $(ARGS)

faults: $(STAMP)  ## tests of tests/faults/README.md: kills at every seam, full disks, hostile bytes, and all else that goes wrong
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -rs -m fault $(ARGS)

soak: $(STAMP)  ## a server and seven silos, killed at random until a budget of 200 rounds is spent, against a run in peace
	$(BIN)/python -m tests.faults.soak $(ARGS)

mutants: $(STAMP)  ## break the source on purpose, line by line, and see that tests notice
	$(BIN)/python tests/mutants.py $(ARGS)

bench: $(STAMP)  ## how fast rounds are, against a plain PyTorch loop
	$(BIN)/python -m simulations.benchmarks.engine $(ARGS)

figures: export OMP_NUM_THREADS := 1
figures: $(STAMP)  ## run the studies whose pictures the README shows, and put those in their place (three hours)
	@for name in reading_epsilon flasc mr_mtl mean_estimation bounded_group_loss shadow_learning scoreboard; do \
		$(BIN)/confide study $$name --workers $(JOBS) --out runs/figures-$$name || test $$? -eq 1 || exit 1; \
		cp runs/figures-$$name/*.svg simulations/studies/figures/ || exit 1; \
	done

notebooks: $(STAMP)  ## run the notebooks of simulations/notebooks and keep their outputs
	$(BIN)/python -m simulations.notebooks.execute $(ARGS)

proto: $(STAMP)  ## compile the interface of the silo's daemon
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. client/proto/silo.proto

fmt: $(STAMP)  ## format the source and mend what the linter can
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

clean:  ## remove caches and build outputs; .venv and runs stay
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
