# Everything runs in .venv, made on first use. A fresh machine needs python3.11, git and make.
PYTHON ?= python3.11
BIN := .venv/bin
DATA ?= ../shared/data
# processes that the tests are spread over
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 2

BENCHES = $(addprefix bench-,roi-align masks tiles stream unet train-step maskrcnn winograd precision int8 nuclei zoo export tflite)

.PHONY: install test test-beam lint demo bench-data bench claims prove-training native train-isbi notebooks \
  train-nuclei browser wheel docs faults coverage test-versions clean $(BENCHES)

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
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
	$(MAKE) --no-print-directory test-beam

# What runs on Apache Beam, which wants older versions of a few packages: it is laid over the rest.
.venv/beam/installed: .venv/installed requirements-beam.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/beam --no-deps \
	  -r requirements-beam.lock
	touch $@

test-beam: .venv/beam/installed
	PYTHONPATH=.venv/beam $(BIN)/python -m pytest tests/test_beam_batch.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# Hostile files, killed runs, full disks, no network, many threads: docs/reliability.md.
faults: install
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile tests/faults

coverage: install
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report term-missing --cov-report html

# In each supported version of Python and TensorFlow that installs here; VERSIONS="oldest --whole" and the like.
test-versions: install
	$(BIN)/python scripts/test_versions.py $(VERSIONS)

demo: install
	$(BIN)/python -m keras_seg.demo

# bench-roi-align runs benchmarks/roi_align.py, and so on.
$(BENCHES): bench-%: install
	$(BIN)/python benchmarks/$(subst -,_,$*).py

# All, one after the other: some two hours on two cores.
bench: $(BENCHES) bench-data

bench-data: install
	$(BIN)/python benchmarks/coco_data.py
	$(BIN)/python benchmarks/coco_data_start.py

# The paper's claims that small data can show, on nuclei: 15 runs, about forty minutes on two quiet cores. Goes on where
# it was stopped.
claims: install
	$(BIN)/python benchmarks/claims.py --data $(DATA)/nuclei

# Whether detectors learn a few photographs by heart: some minutes each.
prove-training: install
	$(BIN)/python benchmarks/overfit.py --data $(DATA)

# How the weights of unet_isbi2012 came about (zoo/unet_isbi2012.md). The recipe is round 3; round 4 goes on from it, round 5
# from round 2, and the weights are the mean of the last two. ALL=--all-data for those from all 25 slices, which are shipped.
ISBI = $(BIN)/keras-seg train unet_isbi2012 --data $(DATA)/isbi2012 --resume $(ALL) $(1) --output $(ISBI_ROUND)$(2)
ISBI_ROUND = runs/isbi$(if $(ALL),_all)_round
set = $(foreach field,$(1),--set $(field))
BALANCED = data.membrane_edge_weight=0.4 data.weight_map.w0=3 data.weight_map.class_weights=null \
  training.optimizer.learning_rate=1.0e-3 training.optimizer.average=0 training.evaluate_every=250
ROUND1 = $(BALANCED) data.augmentation.interpolation=bicubic training.steps=1250 training.schedule.warmup_steps=200 \
  training.schedule.decay_fraction=0 training.seed=0
ROUND2 = $(BALANCED) data.augmentation.elastic_sigma=0 data.augmentation.rotation=right_angles training.steps=2000 \
  data.augmentation.interpolation=bicubic training.schedule.decay_fraction=1.0 training.seed=2
ROUND4 = data.membrane_edge_weight=1.1 data.weight_map.w0=1 data.weight_map.class_weights=[1.1,1] training.steps=400 \
  training.optimizer.learning_rate=3.0e-4 training.optimizer.average=0.995 training.seed=8
ROUND5 = data.membrane_edge_weight=1.0 data.weight_map.w0=1 data.weight_map.class_weights=[1,1] training.steps=350 \
  training.optimizer.average=0 training.schedule.decay_fraction=1.0 training.seed=5
train-isbi: install
	$(call ISBI,$(call set,$(ROUND1)),1)
	$(call ISBI,$(call set,$(ROUND2)) --weights $(ISBI_ROUND)1/last.weights.h5,2)
	$(call ISBI,--weights $(ISBI_ROUND)2/last.weights.h5,3)
	$(call ISBI,$(call set,$(ROUND4)) --weights $(ISBI_ROUND)3/last.weights.h5,4)
	$(call ISBI,$(call set,$(ROUND5)) --weights $(ISBI_ROUND)2/last.weights.h5,5)
	$(BIN)/keras-seg average unet_isbi2012 $(ISBI_ROUND)4/last.weights.h5 $(ISBI_ROUND)5/last.weights.h5 $(ALL) \
	  --data $(DATA)/isbi2012 --half --output $(ISBI_ROUND)s.weights.h5

# How the weights of maskrcnn_nuclei came about (zoo/maskrcnn_nuclei.md): about an hour.
train-nuclei: install
	$(BIN)/keras-seg train maskrcnn_nuclei --data $(DATA)/nuclei --resume --output runs/nuclei
	$(BIN)/keras-seg average maskrcnn_nuclei runs/nuclei/best.weights.h5 --data $(DATA)/nuclei --half \
	  --output runs/nuclei.weights.h5

# Runs the tutorials anew and keeps what they print and draw.
notebooks: install
	$(BIN)/python colab/execute.py colab/*.ipynb

# The compiled RoIAlign for this machine, where a wheel takes it from (docs/native_op.md); CUDA=--cuda for GPUs too.
native: install
	$(BIN)/python -m keras_seg.ops.native.build $(CUDA)

# A page with the models that ship, for any web server. Needs Node 20 with npm.
PAGE = export/browser/dist
browser: install
	$(BIN)/keras-seg export maskrcnn_nuclei $(PAGE) --format browser --overwrite \
	  --example $(DATA)/nuclei/val/2e172afb1f43b359.png --credit "2018 Data Science Bowl, BBBC038v1, CC0"
	$(BIN)/keras-seg export unet_isbi2012 $(PAGE) --format browser --overwrite --example $(DATA)/isbi2012/test-volume.tif \
	  --credit "ISBI 2012 EM segmentation challenge (doi:10.1371/journal.pbio.1000502, doi:10.3389/fnana.2015.00142)"

wheel: install
	$(BIN)/python -m build --wheel

# The pages of docs/ and the reference as a site in build/site, with search; a broken link or reference is an error.
docs: install
	$(BIN)/python -m sphinx -W --keep-going -b html -c docs . build/site

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .ruff_cache .hypothesis
