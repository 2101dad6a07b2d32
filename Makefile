# Two commands do all there is to set up: `make sweep` and `make test`. Both need Python >= 3.11, pip and make.
# `make help` prints the targets with what follows ## beside them, under the titles that follow ##@.
PYTHON ?= python3
BIN := .venv/bin

HYDRA_VERSIONS ?= 1.3.8 1.4.0rc3

QUICK := $(wildcard $(addprefix tests/,tree config storage data models training planning report invariants \
	test_architecture.py test_docs.py))
# The folders whose tests are quick, but for those marked slow.

.PHONY: sweep help check test lint types pages docs lock clean faults properties launchers conformance test-matrix \
	exact r16 engine floors overheads scale waves team bench-gpu bench

##@ Every day
sweep: .venv/installed  ## train a grid of 32 runs on scikit-learn's digits and rank them (what `make` alone does)
	$(BIN)/stagetree sweep +experiment=digits_grid

check: lint types  ## lint, types and the quick tests: before each commit (two minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(QUICK)

test: lint types  ## lint, types and all tests: before each push; what CI runs
	$(BIN)/python -m pytest -n 2

lint: .venv/installed  ## ruff alone: rules and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: .venv/installed  ## pyright alone
	$(BIN)/python -m pyright

pages: .venv/installed  ## make again what the pages in docs/ take from the code
	$(BIN)/python docs/make.py

docs: .venv/installed  ## the pages and their images (needs Chromium)
	$(BIN)/python docs/make.py --pictures

help:  ## print this
	@awk -F ':.*  ## |##@ ' '/^##@ / {printf "\n%s\n", $$2} /^[a-z0-9-]+:.*  ## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lock:  ## resolve requirements.lock anew
	$(BIN)/python -m pip install uv
	$(BIN)/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" -o requirements.lock

clean:  ## remove the environment
	rm -rf .venv

##@ Long tests
faults: .venv/installed  ## the fault suite with its full counts (about an hour on 2 cores), and its table
	$(BIN)/python -m pytest -n 2 --faults full tests/faults --deselect tests/faults/test_properties.py

properties: .venv/installed  ## 1,000 random histories of grids, kills, extensions and damage: MLflow, checkpoints, CSV, plain torch
	$(BIN)/python -m pytest --hypothesis-profile=many --hypothesis-show-statistics --durations=1 tests/faults/test_properties.py

launchers: .venv/installed  ## kills under each launcher with full counts, SLURM and Ray included, and what a unit costs (half an hour)
	$(BIN)/python -m pytest --faults full tests/execution/test_launchers.py tests/execution/test_hosts.py
	PYTHONPATH=tests/support $(BIN)/python benchmarks/launchers.py

conformance: .venv/installed  ## Hydra's own suites for launchers through our sweeper, with each launcher (10 minutes)
	$(BIN)/python -m pytest --faults full tests/execution/test_conformance.py

test-matrix: .venv/installed  ## all tests and Hydra's suites with each version of Hydra (HYDRA_VERSIONS="...")
	for version in $(HYDRA_VERSIONS); do \
		$(BIN)/python -m pip install --quiet --upgrade --target .venv/hydra-$$version hydra-core==$$version && \
		PYTHONPATH=$(CURDIR)/.venv/hydra-$$version $(BIN)/python -m pytest -n 2 && \
		PYTHONPATH=$(CURDIR)/.venv/hydra-$$version $(BIN)/python -m pytest --faults full tests/execution/test_conformance.py \
		|| exit 1; \
	done

##@ Benchmarks
exact: .venv/installed  ## one grid with sharing and packing on and off: the same bits
	$(BIN)/python benchmarks/sharing.py digits

r16: .venv/installed  ## 16 runs on MNIST with sharing and packing on and off: wall time, epochs trained, the same bits
	$(BIN)/python benchmarks/sharing.py r16

engine: .venv/installed  ## the engine alone on one thread: the tutorial's loop, the arithmetic, sizes of packs (3 minutes)
	$(BIN)/python benchmarks/engine.py

floors: .venv/installed  ## what no engine can avoid in the grids of `make bench`: products and updates alone (a minute)
	$(BIN)/python benchmarks/floors.py

overheads: .venv/installed  ## what a sweep costs beside training: start, planning, tracking, reading, memory (5 minutes)
	$(BIN)/python benchmarks/overheads.py

scale: .venv/installed  ## sweeps of up to a million runs on up to 10,000 workers, planned and simulated (15 minutes)
	$(BIN)/python benchmarks/scale.py

waves: .venv/installed  ## an unbalanced tree with and without waves: wall time, idle share (5 minutes)
	$(BIN)/python benchmarks/waves.py

team: .venv/installed  ## thirty sweeps at once to MLflow on PostgreSQL with logins (10 minutes)
	PYTHONPATH=tests/support $(BIN)/python benchmarks/team.py

bench-gpu: $(if $(GPU_PYTHON),,.venv/installed)  ## packs on a CUDA device (GPU_PYTHON=... for an interpreter whose torch knows it), and the tests for it
	PYTHONPATH=src:sweeper $(or $(GPU_PYTHON),$(BIN)/python) -m pytest -m gpu -p no:cacheprovider tests
	PYTHONPATH=src:sweeper $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py

bench: .venv/peers  ## beside the tutorial's loop under joblib, Lightning and Ray Tune (hours; BENCH=n32 for one)
	$(BIN)/python benchmarks/peers.py $(or $(BENCH),r16 r64 n32) --repeats 3 $(BENCH_OPTIONS)

.venv/peers: .venv/installed benchmarks/peers/requirements.txt
	$(BIN)/python -m pip install --quiet -r benchmarks/peers/requirements.txt
	touch $@

# The environment is made anew when the lock or the project's metadata change.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stagetree needs Python 3.11 or newer (make PYTHON=python3.12 ...)")'
	rm -rf .venv  # a link, not what it leads to: venv --clear would empty an environment that others share
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@
