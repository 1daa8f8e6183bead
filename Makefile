# Everything runs in .venv, made on first use. A fresh machine needs python3.11, git and make.
PYTHON ?= python3.11
BIN := .venv/bin
DATA ?= ../shared/data
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: install test lint demo bench-unet train-isbi wheel clean

install: .venv/installed

# The stamp makes later runs start at once; a change of the dependencies installs again.
.venv/installed: setup.cfg pyproject.toml requirements.lock
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
	  echo "make: needs $(PYTHON) with its venv module (Debian: apt install python3.11-venv)," \
	       "or another Python 3.11 or later: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[test]"
	touch $@

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .

demo: install
	$(BIN)/python -m keras_seg.demo

bench-unet: install
	$(BIN)/python benchmarks/unet.py

# The two rounds in which unet_isbi2012 was trained (zoo/unet_isbi2012.md); ALL=--all-data for the shipped weights.
ROUND1 := --set data.weight_map.w0=10 --set training.steps=2200 --set training.seed=0 \
  --set training.schedule.warmup_steps=200 --set training.schedule.decay_fraction=0.5
train-isbi: install
	$(BIN)/keras-seg train unet_isbi2012 --data $(DATA)/isbi2012 --output runs/isbi_round1 --resume $(ROUND1) $(ALL)
	$(BIN)/keras-seg train unet_isbi2012 --data $(DATA)/isbi2012 --output runs/isbi_round2 --resume $(ALL) \
	  --weights runs/isbi_round1/last.weights.h5

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .ruff_cache .hypothesis
