# Two commands do everything, set-up included: `make demo` and `make test`.

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := configs/e2e/demo/forward.yaml
# Decoding workers and the training process share the machine; one thread each beats two fighting.
DEMO_ENV := OMP_NUM_THREADS=1
LAUNCH := $(BIN)/accelerate launch --config_file configs/accelerate/one_process.yaml

.PHONY: demo control test test-all lint clean

demo: $(READY)
	$(BIN)/python extract/demo.py --out data/demo
	$(DEMO_ENV) $(LAUNCH) train/e2e.py --config $(DEMO) --resume
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint runs/demo/forward/last.pt
	@echo "Look at runs/demo/forward/curves.png and runs/demo/forward/evaluation/last-test/tious.png"

# The same run on annotations exchanged between videos: it must fail.
control: $(READY)
	$(BIN)/python extract/demo.py --out data/demo
	$(DEMO_ENV) $(LAUNCH) train/e2e.py --config $(DEMO) --resume \
		--out runs/demo/control --data.annotations data/demo/exchanged.json
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint runs/demo/control/last.pt

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m ""

$(READY): pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) data/demo runs/demo
