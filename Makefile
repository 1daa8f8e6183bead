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

train-isbi: install
	$(BIN)/keras-seg train zoo/unet_isbi2012.yaml --data $(DATA)/isbi2012 --output runs/unet_isbi2012 --resume

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .ruff_cache .hypothesis
