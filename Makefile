# Two commands do everything, set-up included: `make demo` and `make test`.

VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
DEMO := configs/e2e/demo/forward.yaml
DETECTOR := runs/demo/forward/last.pt
CACHE := runs/demo/cache
# Every epoch reads the same frames: decoded once, with the same numbers.
FRAMES := --data.frame_cache runs/demo/frames
REVERSED := runs/demo/reversed/last.pt
REVERSED_LOG := runs/demo/reversed.log
# One on every machine: sums of more threads differ in their last digits, and two threads wait for each
# other wherever something else runs.
DEMO_ENV := OMP_NUM_THREADS=1
LAUNCH := $(BIN)/accelerate launch --config_file configs/accelerate/one_process.yaml
TRAIN := $(DEMO_ENV) $(LAUNCH) train/e2e.py --config $(DEMO) --resume $(FRAMES)

.PHONY: demo train-forward train-reversed control study test test-all test-versions docs lint clean

demo: $(INSTALLED)
	$(BIN)/python extract/demo.py --out data/demo
	@echo "== 1. End to end: adapters and head learn from the pixels of mp4 files. Beside them learns a second"
	@echo "      stream, the same backwards in time; its output goes to $(REVERSED_LOG)."
	@$(MAKE) --no-print-directory --jobs 2 train-forward train-reversed
	@echo "== 2. The backbone's activations go into the cache, and the detector is scored from there."
	$(DEMO_ENV) $(BIN)/python extract/run.py --checkpoint $(DETECTOR) --cache $(CACHE) \
		--cache.blocks "[3]" --of train validation test
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint $(DETECTOR) --cache $(CACHE)
	@echo "== 3. Another head, narrower, learns from the cache alone."
	$(DEMO_ENV) $(LAUNCH) train/heads.py --checkpoint $(DETECTOR) --cache $(CACHE) --resume \
		--out runs/demo/head --head.width 96
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint runs/demo/head/last.pt --cache $(CACHE)
	@echo "== 4. The adapters of blocks 4 and 5 learn along, from what is stored after block 3."
	$(DEMO_ENV) $(LAUNCH) train/heads.py --checkpoint $(DETECTOR) --cache $(CACHE) --resume \
		--out runs/demo/part --backbone.trainable_from_block 4 --training.epochs 10 \
		--training.stop_epoch 10
	@echo "== 5. These adapters have changed: passes from block 3, which is still true, fill the gap."
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint runs/demo/part/last.pt --cache $(CACHE)
	@echo "== 6. Both streams, fused: every point averaged with its partner, and weighed by how far both agree."
	$(DEMO_ENV) $(BIN)/python train/heads.py --checkpoint $(DETECTOR) $(REVERSED) --cache $(CACHE) \
		--config configs/fusion/agreement.yaml --out runs/demo/fused --resume
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint runs/demo/fused/last.pt --cache $(CACHE)
	$(DEMO_ENV) $(BIN)/python cache/show.py $(CACHE)
	@echo "== 7. The segments of a video, and a page to look at them."
	$(DEMO_ENV) $(BIN)/python evaluate/detect.py data/demo/videos/test_000.mp4 \
		--checkpoint runs/demo/fused/last.pt --annotations data/demo/annotations.json \
		--page runs/demo/page.html
	@echo "For a browser: runs/demo/page.html (a video and what was found in it);"
	@echo "reports of what has been done: runs/demo/forward/report.html (training)"
	@echo "and runs/demo/fused/evaluation/last-test/report.html (both directions, scored)"

# Each computes with one thread: two streams take two cores. Two bars on one screen would be no help.
train-forward:
	$(TRAIN) --cache $(CACHE)

train-reversed:
	@mkdir -p $(dir $(REVERSED_LOG))
	$(TRAIN) --cache $(CACHE) --direction reversed --out runs/demo/reversed > $(REVERSED_LOG) 2>&1 \
		|| { tail -n 20 $(REVERSED_LOG); exit 1; }

# The same run on annotations exchanged between videos: it must fail.
control: $(INSTALLED)
	$(BIN)/python extract/demo.py --out data/demo
	$(TRAIN) --out runs/demo/control --data.annotations data/demo/exchanged.json
	$(DEMO_ENV) $(BIN)/python evaluate/run.py --checkpoint runs/demo/control/last.pt

# The bidirectional study: 41 rows of 5 seeds on other synthetic videos; goes on where it stopped.
study: $(INSTALLED)
	$(BIN)/python extract/demo.py --preset study --out data/study
	$(BIN)/python train/ablate.py configs/ablate/study.yaml --processes 2

# The documentation as a site, build/docs/index.html; a broken link ends it.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python docs/settings.py
	$(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Files of tests side by side, one on each core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m ""

# The newest versions of all packages on every Python at hand, then the lowest that pyproject.toml
# allows. TESTS=tests runs the whole suite; PYTHONS=3.12 LOWEST= only one of the environments.
PYTHONS ?= 3.11 3.12 3.13
LOWEST ?= 3.11
TESTS ?= tests/test_video.py tests/test_store.py tests/test_detector.py tests/test_nms.py tests/test_configs.py

test-versions: $(READY)
	@for version in $(PYTHONS); do \
		PYENV_VERSION=$$version $(BIN)/uv python find --quiet --no-python-downloads $$version 2>/dev/null \
			|| { echo "== Python $$version is not here"; continue; }; \
		echo "== Python $$version, newest versions"; \
		$(MAKE) --no-print-directory test-one PYTHON=$$version RESOLUTION=highest || exit 1; \
	done
	@for version in $(LOWEST); do \
		echo "== Python $$version, lowest versions"; \
		$(MAKE) --no-print-directory test-one PYTHON=$$version RESOLUTION=lowest-direct || exit 1; \
	done

# pyenv hides all Pythons but the one that is asked for by name.
ONE = $(VENV)-$(PYTHON)-$(RESOLUTION)
test-one: export PYENV_VERSION = $(PYTHON)
test-one:
	test -x $(ONE)/bin/python || $(BIN)/uv venv --quiet --no-python-downloads --python $(PYTHON) $(ONE)
	$(BIN)/uv pip install --quiet --resolution $(RESOLUTION) --python $(ONE)/bin/python --editable ".[dev]"
	$(MAKE) --no-print-directory run-tests VENV=$(ONE)

.PHONY: test-one run-tests
run-tests:
	$(PYTEST) $(TESTS)

$(INSTALLED): pyproject.toml
	@echo "== Installing into $(VENV): a minute or more, of which little is seen."
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# What tests and documentation need beside it.
$(READY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* data/demo runs/demo
