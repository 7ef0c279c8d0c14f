"""Time extraction of a block's activations into a store that is as slow as the network.

    OMP_NUM_THREADS=1 python -m benchmarks.slow_store

The store's pauses take as long in all as everything else does, so that a thread that stores beside
the network can halve the time, at most. The demo's network, random weights, whole videos.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from accelerate import Accelerator

from cache.store import Store
from configs.loader import load
from extract.activations import refresh as extraction
from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, plan
from extract.backbone.imported import AnyBackbone
from extract.demo import DemoConfig, write_dataset
from extract.sampling.spans import Span, whole_video_window
from train.config import Experiment
from train.data.video_files import probe_item, with_digest
from train.detector.model import Detector

BLOCK = 3
CONFIG = "configs/e2e/demo/forward.yaml"


class InTurn(AbstractContextManager["InTurn"]):
    """Stores as `WritingThread` does, but while the network waits."""

    def __init__(self, times: object) -> None:
        pass

    def write(self, activations: Activations, *rows: Any) -> None:
        activations.write(*rows)

    def __exit__(self, *error: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    config = load(Experiment, CONFIG, ["--training.workers=0"])
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data").mkdir()
        write_dataset(folder / "data", DemoConfig(args.videos, validation=1, test=1))
        spans = [
            span_of(path, config) for path in sorted((folder / "data/videos").glob("training*"))
        ]
        detector = Detector(config, ("a",)).eval()
        detector.load_pretrained()
        network = detector.streams[0].backbone
        plain, writes = extract(config, network, spans, folder / "plain", 0.0)
        print(f"no pauses: {plain:.2f} s for {writes} writes", flush=True)
        pause = plain / writes
        taken: dict[str, list[float]] = {"in turn": [], "in a thread": []}
        for number in range(args.repeat):
            for name, seconds in taken.items():
                place = folder / f"{name} {number}"
                seconds.append(extract(config, network, spans, place, pause, name == "in turn")[0])
    found = {name: statistics.median(seconds) for name, seconds in taken.items()}
    print(json.dumps(found | {"ratio": found["in turn"] / found["in a thread"]}))


def span_of(path: Path, config: Experiment) -> Span:
    item = with_digest(probe_item(path))
    return Span(item.info, path, whole_video_window(item, config.sampling), "forward", "video")


def extract(
    config: Experiment,
    network: AnyBackbone,
    spans: Sequence[Span],
    place: Path,
    pause_s: float,
    in_turn: bool = False,
) -> tuple[float, int]:
    """Return how long extraction took, and how often it wrote; every write takes so much longer."""
    accelerator, writes, write = Accelerator(cpu=True), 0, Activations.write

    def slow_write(self: Activations, *rows: Any) -> None:
        nonlocal writes
        writes += 1
        time.sleep(pause_s)
        write(self, *rows)

    thread = InTurn if in_turn else extraction.WritingThread
    with (
        Store.open(place, "a") as store,
        patch.object(Activations, "write", slow_write),
        patch.object(extraction, "WritingThread", thread),
    ):
        cache = replace(config.cache, blocks=(BLOCK,), span="video")
        activations = Activations(store, network, config.pixels, "fp32", cache, "random")
        made = plan([SpanRequest(activations, spans, (BLOCK,))], accelerator)
        began = time.perf_counter()
        extraction.refresh(made, accelerator, workers=0)
        return time.perf_counter() - began, writes


if __name__ == "__main__":
    main()
