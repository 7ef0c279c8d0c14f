"""Extractions killed with -9 at any moment and begun again leave the cache that would have been."""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from cache.store import Store
from cache.upkeep.verify import verify
from configs.loader import load
from extract.activations.stored import Places, missing
from extract.sampling.spans import Span
from extract.settings.backbone import Cut
from tests.forks import Script, script
from tests.test_e2e import DEMO, QUICK
from train.config import Experiment
from train.data.cached import evaluation_spans, training_spans
from train.data.truth import load_annotations
from train.data.videos import load_subsets
from train.detector.setup import activations_of
from train.detector.sources import build_detector

CUTS: tuple[Cut, ...] = (2, "features")


def wanted(overrides: list[str], store: Store) -> tuple[Places, list[Span]]:
    """Return where the script keeps activations, and of which spans."""
    config = load(Experiment, DEMO, overrides)
    annotations = load_annotations(config.data)
    names = ["training", "validation", "test"]
    training, validation, test = load_subsets(config.data, annotations, names, None, store)
    detector = build_detector(config, annotations.classes).eval()
    sampling = config.sampling
    spans = [
        *training_spans(training, sampling, "forward", config.cache.span),
        *evaluation_spans(validation, sampling.validation_overlap, sampling, "forward"),
        *evaluation_spans(test, sampling.test_overlap, sampling, "forward"),
    ]
    (activations,) = activations_of(detector, store, [DEMO])
    return activations.cached_cuts(), spans


def complete(store: Store, places: Places, spans: list[Span]) -> int:
    """Return how many spans the store has all of."""
    store.refresh()
    return sum(not missing(places, span, CUTS) for span in spans)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_extractions_end_as_if_they_had_not_been(
    data: list[str], tmp_path: Path, kills: int
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    # Everything is flushed at once, so that what was computed is what is committed.
    overrides = [*data, *QUICK, "--cache.blocks=[2]", "--cache.flush_s=0", "--cache.dtype=float32"]
    command = ["extract/run.py", "--config", str(DEMO), "--of", "train", "validation", "test"]
    done = script(*command, *overrides, "--cache", tmp_path / "whole")
    assert done.returncode == 0, done.stdout + done.stderr

    rng, killed, stores = random.Random(kills), 0, 0
    with Store.open(tmp_path / "whole") as whole:
        places, spans = wanted(overrides, whole)
        assert complete(whole, places, spans) == len(spans)
        while killed < kills:
            folder = tmp_path / f"killed-{stores}"
            stores += 1
            Store.open(folder, "a").close()
            with Store.open(folder) as store:
                here = {cut: replace(place, store=store) for cut, place in places.items()}
                while killed < kills and complete(store, here, spans) < len(spans):
                    killed += run_and_kill(command + overrides, folder, store, here, spans, rng)
                    assert verify(store) == []
                done = script(*command, *overrides, "--cache", folder)
                assert done.returncode == 0, done.stdout + done.stderr
                assert complete(store, here, spans) == len(spans) and verify(store) == []
                for span in spans:
                    for cut in CUTS:
                        one, two = (s.read(places[cut].address(span)) for s in (store, whole))
                        assert torch.equal(one, two)


def run_and_kill(
    command: list[str],
    folder: Path,
    store: Store,
    places: Places,
    spans: list[Span],
    rng: random.Random,
) -> bool:
    """Start the script and kill it a little after some spans more are there; say whether it was."""
    before = complete(store, places, spans)
    process = Script(*command, "--cache", folder)
    while process.poll() is None and "\n" not in process.printed():
        time.sleep(0.002)
    # What is there is not computed again.
    planned = process.printed()
    assert planned.startswith(f"cache: {before} of {len(spans)} spans are there"), planned
    goal = before + rng.randint(0, 3)
    while process.poll() is None and complete(store, places, spans) < goal:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    alive = process.poll() is None
    if alive:
        process.kill()
    return alive
