"""Time a training sample on the cache against an end-to-end one: VideoMAE-S, 192 frames of 160 px.

    python -m benchmarks.heads [VIDEO ...] [--precision fp32] [--repeats 5]

Everything that a sample costs counts, in one process: drawing it (decoding and augmentation, or
reading the store), forward, losses, backward and update. The ways take turns, so that all meet the
same noise; what is printed are medians and their ratio to the end-to-end sample. A row on the share
of its time that head training waits for the loader follows, with one worker and real batches.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grad_norm_

from benchmarks.cases import CLASSES, CONFIG, FRAMES, SIZE
from cache.store import Store
from configs.loader import load
from tests.encodings import Encoding, write_numbered
from train.config import Experiment
from train.data.batch import Batch, collate
from train.data.cached import CachedStreams, ensure_cached, training_spans
from train.data.items import VideoItem
from train.data.loading import EpochSampler
from train.data.video_files import probe_item, with_digest
from train.data.windows import TrainingWindows, WindowInputs, training_loader
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.training import build_optimizer
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

DEPTH, BLOCK = 12, 9
HEAD_BATCH = 2


def settings(url: Path, precision: str, block: int) -> Experiment:
    overrides = [
        f"--sampling.window_size={FRAMES}",
        f"--pixels.size={SIZE}",
        f"--training.precision={precision}",
        f"--backbone.trainable_from_block={block}",
        f"--cache.url={url}",
        "--backbone.weights=null",
    ]
    return load(Experiment, CONFIG, overrides)


def read_items(files: list[Path]) -> list[VideoItem]:
    """Return videos with an action in their middle, without which they are no training videos."""
    items = []
    for file in files:
        item = with_digest(probe_item(file))
        segments = np.array([[0.45, 0.5]]) * item.frames
        items.append(replace(item, segments=segments, labels=np.zeros(1, np.int64)))
    return items


def build_way(
    config: Experiment, items: list[VideoItem], cached: CachedStreams | None
) -> Callable[[int], None]:
    """Return a function that trains on the n-th sample."""
    torch.manual_seed(0)
    detector = Detector(config, tuple(f"class {i}" for i in range(CLASSES))).train()
    dataset, step = (
        TrainingWindows(items, WindowInputs.of(config, cached)),
        build_trainer(detector),
    )

    def train(number: int) -> None:
        batch = collate([dataset[(number, number % len(items))]])
        step(batch.to(torch.device("cpu")).augmented())

    return train


def build_trainer(detector: Detector) -> Callable[[Batch], None]:
    config = detector.config
    optimizer = build_optimizer(detector, config.training)
    points = pyramid_points(FRAMES, config.head.levels, torch.device("cpu"))
    half = config.training.precision == "bf16"

    def step(batch: Batch) -> None:
        targets = assign_batch(points, batch.segments[0], batch.labels, CLASSES)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (output,) = detector(batch.inputs, batch.mask, batch.reflection, batch.start)
        losses = detection_losses(output, targets)
        ((losses.classification + losses.regression) / 100).backward()
        clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_waiting(config: Experiment, items: list[VideoItem], cached: CachedStreams) -> float:
    """Return the share of its time that head training waits for batches of two."""
    dataset = TrainingWindows(items * (80 // len(items)), WindowInputs.of(config, cached))
    sampler = EpochSampler(len(dataset), HEAD_BATCH, 0, 1, seed=0)
    detector = Detector(config, tuple(f"class {i}" for i in range(CLASSES))).train()
    step, batches = build_trainer(detector), iter(training_loader(dataset, sampler, 1))
    waited = began = 0.0
    for number in range(sampler.steps):
        if number == 5:  # the worker has started and is ahead
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch.to(torch.device("cpu")))
    return waited / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("videos", type=Path, nargs="*", help="default: made for the occasion")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder) / "cache"
        files = args.videos or [Path(folder) / f"{n}.mp4" for n in range(2)]
        for file in [] if args.videos else files:
            write_numbered(file, 1600, Encoding("libx264", "indexed", size=(240, 320)))
        items = read_items(files)
        whole, part, head = (settings(url, args.precision, b) for b in (0, BLOCK, DEPTH))
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        source = Detector(head, tuple(f"class {i}" for i in range(CLASSES))).eval()
        with Store.open(url, "a") as store:
            activations = activations_of(source, store, ["weights.pt"])
            spans = [training_spans(items, head.sampling, head.direction, head.cache.span)]
            workers = head.training.workers
            features, _ = ensure_cached(activations, spans, "features", [], accelerator, workers)
            block, _ = ensure_cached(activations, spans, BLOCK - 1, [], accelerator, workers)
            ways = {
                "end to end": build_way(whole, items, None),
                f"trainable_from_block {BLOCK}": build_way(part, items, block),
                "head alone": build_way(head, items, features),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(args.repeats + 1):
                for name, train in ways.items():
                    began = time.perf_counter()
                    train(number)
                    seconds[name].append(time.perf_counter() - began)
            waits = measure_waiting(head, items, features)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.precision}")
    print("| a training sample | seconds | of an end-to-end one |\n|---|---|---|")
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | 1/{medians['end to end'] / median:.1f} |")
    print(f"\nhead training waits for its loader {waits:.1%} of the time")


if __name__ == "__main__":
    main()
