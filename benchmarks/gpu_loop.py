"""The parts of `benchmarks.gpu` that use files: golden numbers, and the real loop on videos."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from benchmarks.gpu_parts import Plan, Row, relative_error
from benchmarks.gpu_steps import NAMES, settings, synchronise
from extract.backbone.precision import computing_in
from extract.sampling.frame_cache import FrameCache
from extract.settings.backbone import Precision
from tests.conftest import GOLDEN
from tests.encodings import Encoding, write_numbered
from tests.test_detector import golden_detector
from train.config import Experiment
from train.data.videos import VideoItem, probe_item, with_digest
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.engine.loop import WAITING, TrainingRun
from train.engine.session import make_accelerator
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

JITTER = (0.5, 0.5, 0.5, 0.1)
FILES, REPEATED = 4, 10  # videos that are made, and how often an epoch has each


class LoopCase(NamedTuple):
    """How the loop gets its windows."""

    workers: int
    jitter: bool
    frame_cache: bool


CASES = (
    *(LoopCase(workers, True, False) for workers in (4, 8, 16)),
    LoopCase(16, False, False),
    LoopCase(16, True, True),
)
SMALL_CASES = LoopCase(0, True, False), LoopCase(1, False, True)


@torch.inference_mode()
def compare_with_golden(plan: Plan) -> Iterator[Row]:
    """Yield how far the device is from the numbers of OpenTAD's implementation (1e-5 is right)."""
    golden = load_file(GOLDEN / "activations.safetensors", plan.device)
    detector = golden_detector().to(plan.device).eval()
    (stream,) = detector.streams
    mask = torch.ones(1, 64, dtype=torch.bool, device=plan.device)
    reflection = torch.tensor([63.0], device=plan.device)
    segments, labels = (
        [golden[f"gt_{what}_{i}"] for i in range(2)] for what in ("segments", "labels")
    )
    points = pyramid_points(64, 4, mask.device)
    precisions: tuple[Precision, ...] = "fp32", "tf32"
    for precision in precisions:
        with computing_in(precision, torch.device(plan.device)):
            (whole,) = detector([golden["video"][:1]], mask, reflection)
            output = stream.head(golden["head_in"], golden["head_mask"])
            losses = detection_losses(output, assign_batch(points, segments, labels, 5))
        positive = torch.stack([golden["target_cls_0"], golden["target_cls_1"]]).any(-1)
        divided = losses.classification / (positive & torch.cat(output.masks, -1)).sum()
        yield {
            "precision": precision,
            "scores": relative_error(whole.flat()[0][0].sigmoid(), golden["full_scores_0"]),
            "logits": relative_error(output.logits[0], golden["cls_logits_0"]),
            "distances": relative_error(output.distances[0], golden["reg_0"]),
            "loss": relative_error(divided, golden["cls_loss"].squeeze()),
        }


def time_real_loop(plan: Plan) -> Iterator[Row]:
    """Yield the second epoch of training on videos: how busy the device is, by events around it.

    Beside it stands the share of time that the run's report calls waiting for data.
    """
    (size,) = plan.sizes("s")
    with tempfile.TemporaryDirectory() as folder:
        config = settings(size, 2, None, folder)
        frames = config.sampling.samples * 4
        files = [Path(folder) / f"{number}.mp4" for number in range(2 if plan.small else FILES)]
        for file in files:
            write_numbered(file, frames, Encoding("libx264", "indexed", size=(240, 320)))
        items = [_with_action(file, config) for file in files] * (3 if plan.small else REPEATED)
        for number, case in enumerate(SMALL_CASES if plan.small else CASES):
            out = str(Path(folder) / str(number))
            yield case._asdict() | measure_loop(plan, replace(config, out=out), case, items)


def measure_loop(plan: Plan, config: Experiment, case: LoopCase, items: Sequence[VideoItem]) -> Row:
    """Return the shares of time of a run's second epoch."""
    out = Path(config.out)
    out.mkdir()
    training = replace(
        config.training, workers=case.workers, epochs=4, stop_epoch=2, warmup_epochs=1, trackers=()
    )
    config = replace(
        config,
        training=training,
        data=replace(config.data, validation_subset=None),
        pixels=replace(config.pixels, colour_jitter=JITTER if case.jitter else None),
    )
    frames = FrameCache(out, config.sampling, None) if case.frame_cache else None
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator(config, cpu=plan.device == "cpu")
    detector = Detector(config, NAMES)
    task = DetectionTask(detector, [*items], None, accelerator, frame_cache=frames)
    run = TrainingRun(task, accelerator, resume=False)
    marks, update = list[tuple[Any, Any]](), run.update
    ends: list[tuple[float, float]] = []  # of each epoch: when, and how long it had waited

    def marked(step: int, batches: Sequence[Any]) -> Any:
        first = _mark(plan.device)
        done = update(step, batches)
        marks.append((first, _mark(plan.device)))
        if (step + 1) % run.updates == 0:
            synchronise(plan.device)
            ends.append((time.perf_counter(), run.watch.seconds().get(WAITING, 0.0)))
        return done

    run.update = marked  # type: ignore[method-assign]
    run.train()
    (since, waited), (until, waited_in_all) = ends
    took = until - since
    busy = sum(_between(*pair) for pair in marks[run.updates :])
    return {
        "updates": run.updates,
        "seconds_per_update": took / run.updates,
        "busy_share": busy / took,
        "said_to_wait": (waited_in_all - waited) / took,
    }


def _with_action(file: Path, config: Experiment) -> VideoItem:
    """Return a video with an action in its middle, without which it is no training video."""
    item = with_digest(probe_item(file, config.sampling.fps))
    segments = np.array([[0.45, 0.5]]) * item.frames
    return replace(item, segments=segments, labels=np.zeros(1, np.int64))


def _mark(device: str) -> Any:
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, last: Any) -> float:
    """Return the seconds between two marks, which the device has reached."""
    return last - first if isinstance(first, float) else first.elapsed_time(last) / 1000
