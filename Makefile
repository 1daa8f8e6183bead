# Everything runs in .venv, made on first use. A fresh machine needs python3.11, git and make.
PYTHON ?= python3.11
BIN := .venv/bin
DATA ?= ../shared/data
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: install test lint demo bench-unet bench-maskrcnn bench-train-step bench-data bench-masks bench-tiles bench-roi-align native train-isbi wheel clean

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

bench-masks: install
	$(BIN)/python benchmarks/masks.py

bench-tiles: install
	$(BIN)/python benchmarks/tiles.py

bench-maskrcnn: install
	$(BIN)/python benchmarks/maskrcnn.py

bench-train-step: install
	$(BIN)/python benchmarks/train_step.py

bench-roi-align: install
	$(BIN)/python benchmarks/roi_align.py

bench-data: install
	$(BIN)/python benchmarks/coco_data.py
	$(BIN)/python benchmarks/coco_data_start.py

# The two rounds in which unet_isbi2012 was trained (zoo/unet_isbi2012.md), the recipe being the second; ALL=--all-data
# for weights from all 25 slices.
TRAIN_ISBI = $(BIN)/keras-seg train unet_isbi2012 --data $(DATA)/isbi2012 --resume $(ALL) --output runs/isbi$(if $(ALL),_all)_round
ROUND1 := --set data.augmentation.elastic_sigma=10 --set data.augmentation.rotation=any --set training.seed=0 \
  --set training.steps=1250 --set training.schedule.warmup_steps=200 --set training.schedule.decay_fraction=0
train-isbi: install
	$(TRAIN_ISBI)1 $(ROUND1)
	$(TRAIN_ISBI)2 --weights runs/isbi$(if $(ALL),_all)_round1/last.weights.h5

# The compiled RoIAlign for this machine, where a wheel takes it from (docs/native_op.md); CUDA=--cuda for GPUs too.
native: install
	$(BIN)/python -m keras_seg.ops.native.build $(CUDA)

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .ruff_cache .hypothesis
