# make demo       draw a dataset, train on it, evaluate it: minutes, on CPUs or GPUs
# make try        translate pictures with the demo's model in a browser; it trains the model first
# make joint      draw two datasets with different labels, train on both, evaluate: half an hour
# make ablation   the rows of the paper's ablation on the demo's dataset, 3 seeds each: 90 minutes
# make schedules  the quality that each schedule keeps, on the demo's dataset, 5 seeds: hours
# make comparison the methods that the papers compare, on that dataset, 2 seeds: hours
# make test       the tests, except those that take minutes each (make test-slow)
#                 (as root, both first install Debian's Slurm and Chromium, which some tests start)
# make coverage   the same with the coverage of the tests, which takes a third longer
# make campaign   random faults in real trainings, by a seed: SEED=0 MINUTES=30 (docs/reliability.md)
# make docs       the documentation site, in build/site
# make check      lint, format, types, spelling, documentation site
# make setup      the virtual environment in .venv, which the targets above set up first, once
# make clean      remove build/

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo

.PHONY: demo try ablation schedules comparison joint announce-test test coverage test-slow campaign docs check clean setup
.DELETE_ON_ERROR:
# An interrupted training is resumed.
.PRECIOUS: $(DEMO)/run/checkpoints/latest

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed, as python3"; exit 1; }
	@test -x $(BIN)/python || python3 -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV): minutes and about 6 GB the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

announce-test:
	@echo "installs what is missing: the virtual environment $(VENV) and, as root, Debian's packages of Slurm and Chromium"

# Three test files at a time, as many tests wait for processes, in the order of their names. xdist would otherwise leave long files with
# few tests to the end.
test: announce-test $(READY)
	@tests/install.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST)

coverage:
	@$(MAKE) --no-print-directory test PYTEST="--cov --cov-report term"

test-slow: announce-test $(READY)
	@tests/install.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

SEED ?= 0
MINUTES ?= 30

campaign: $(READY)
	$(BIN)/python -m tests.campaign --seed $(SEED) --minutes $(MINUTES)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources slurm/*.sh launchers/*.sh tests/*.sh
	$(BIN)/mypy
	$(BIN)/codespell
	$(MAKE) --no-print-directory docs

# Not with --quiet: strict mode would then miss the warnings. The variable silences an announcement
# of mkdocs-material about MkDocs 2.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "open build/site/index.html"

# Two processes on CPUs; on GPUs as many as there are, down to a power of two.
LAUNCH = OMP_NUM_THREADS=1 $(BIN)/python -m stargan_dist.launch $$($(BIN)/python -c "import torch; \
  n = torch.cuda.device_count() or 2; n = min(8, 1 << n.bit_length() - 1); \
  print('--multi_gpu' if n > 1 else '', '--num_processes', n)") \
  --num_machines 1 --mixed_precision no --dynamo_backend no

$(DEMO)/animals: | $(READY)
	$(BIN)/python -m stargan_dist.data.demo $@

$(DEMO)/shards/index.json: | $(DEMO)/animals
	$(BIN)/python -m stargan_dist.shards build $(DEMO)/animals/images $(DEMO)/shards

$(DEMO)/run/checkpoints/latest: | $(DEMO)/shards/index.json
	$(LAUNCH) -m stargan_dist.train --config configs/demo.yaml

try: $(DEMO)/run/checkpoints/latest
	$(BIN)/python -m stargan_dist.app $(DEMO)/run

demo: $(DEMO)/shards/index.json
	@echo "training: minutes; each line of progress has the time that is left (eta), the first after some seconds"
	$(LAUNCH) -m stargan_dist.train --config configs/demo.yaml
	$(BIN)/python -m stargan_dist.evaluate --run $(DEMO)/run
	$(BIN)/python -m stargan_dist.sample --run $(DEMO)/run
	$(BIN)/python experiments/demo_quality.py $(DEMO)/run
	@echo
	@echo "images       $(DEMO)/animals/images"
	@echo "shards       $(DEMO)/shards"
	@echo "run          $(DEMO)/run   (checkpoints/, samples/, evaluation/, config.yaml)"
	@echo "translations $(DEMO)/run/translations"
	@echo "watch it     $(BIN)/tensorboard --logdir $(DEMO)/run/tensorboard"

ablation: $(DEMO)/shards/index.json
	$(BIN)/python experiments/ablation.py

schedules: $(DEMO)/shards/index.json
	$(BIN)/python experiments/schedules.py --budgets fast:0.47 fast:0.49

comparison: $(DEMO)/shards/index.json
	$(BIN)/python experiments/comparison.py

joint: $(READY)
	$(BIN)/python experiments/joint.py
	$(LAUNCH) -m stargan_dist.evaluate --run build/joint/run --protocol demo

clean:
	rm -rf build
