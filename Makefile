# physrep: from nothing to a table with `make demo`; everything else in `make help`.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install data verify show demo benchmark test test-fast test-slurm lint types check bench dashboard clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "make %-11s %s\n", $$1, $$2}'

install: $(READY) ## the environment in .venv, with everything for development

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

ifneq ($(filter data verify show,$(MAKECMDGOALS)),)
ifndef DATA
$(error DATA is missing; say which of conf/data, as in: make $(MAKECMDGOALS) DATA=shear_flow)
endif
endif

data: $(READY) ## download DATA=shear_flow or another dataset of The Well, from where it stopped
	$(PY) -m physrep.download data=$(DATA)

verify: $(READY) ## check the files of DATA=shear_flow or another dataset
	$(PY) -m physrep.verify data=$(DATA)

show: $(READY) ## a picture and an animation of DATA=shear_flow_small or another dataset, in figures/
	$(PY) -m physrep.show data=$(DATA)

demo: $(READY) ## from nothing to a table: simulate, pretrain, probe, report (5 to 10 minutes on two cores)
	$(PY) -m physrep.simulate system=shear_flow preset=small
	$(PY) -m physrep.fit experiment=demo objective=random
	$(PY) -m physrep.fit experiment=demo objective=jepa
	$(PY) -m physrep.fit experiment=demo objective=views
	$(PY) -m physrep.probe experiment=demo
	$(PY) -m physrep.report experiment=demo

EXPERIMENT ?= small
JOBS ?= 2  # runs side by side; 1 on a GPU
SMALL_small := shear_flow rayleigh_benard active_matter gray_scott  # what an experiment's sets are simulated from
SMALL_label_efficiency := shear_flow
SMALL_ablations := shear_flow
SMALL_failures := shear_flow
SMALL_heldout := rayleigh_benard shear_flow

benchmark: $(READY) ## runs, probes and report of EXPERIMENT=small (hours) or another, JOBS=2 at a time; goes on where it was
	$(foreach system,$(SMALL_$(EXPERIMENT)),$(PY) -m physrep.simulate system=$(system) preset=small &&) true
	$(PY) -m physrep.sweep experiment=$(EXPERIMENT) --jobs $(JOBS); status=$$?; \
		$(PY) -m physrep.report experiment=$(EXPERIMENT) && exit $$status

test: $(READY) ## all tests, in two processes
	$(PY) -m pytest -n 2 --dist loadfile

test-fast: $(READY) ## the tests that take no more than a few seconds each
	$(PY) -m pytest -n 2 --dist loadfile -m 'not slow'

test-slurm: $(READY) ## the tests on a real SLURM of two nodes, started for them (Debian: slurmctld slurmd slurm-client munge)
	$(PY) -m pytest -m slurm tests/test_slurm.py -rs

lint: $(READY) ## style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY) ## types, strictly
	$(VENV)/bin/mypy

check: lint types test ## style, types and tests: what CI runs

bench: $(READY) ## speed of reading, training steps, embedding, probes, the start and the simulation, beside plain ones
	$(PY) -m benchmarks.loader
	$(PY) -m benchmarks.step
	$(PY) -m benchmarks.embed
	$(PY) -m benchmarks.probe
	$(PY) -m benchmarks.startup
	$(PY) -m benchmarks.simulate

dashboard: $(READY) ## TensorBoard over all runs
	$(VENV)/bin/tensorboard --logdir runs

clean: ## remove caches (datasets/, runs/ and .venv stay)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
