"""The parts of `benchmarks.gpu` that use files: golden numbers, and the real work on videos."""

import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from benchmarks.gpu_parts import Plan, Row, relative_error
from benchmarks.gpu_steps import (
    NAMES,
    count_compiled,
    new_accelerator,
    settings,
    synchronise,
    time_step,
)
from cache.store import Store
from extract.activations import plan as passes
from extract.activations.activations import Activations
from extract.activations.inputs import PassInput, Piece, job_pieces
from extract.activations.refresh import refresh
from extract.activations.stored import Cached
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import hold_frozen
from extract.backbone.precision import computing_in
from extract.sampling.frame_cache import FrameCache
from extract.sampling.spans import Span
from extract.settings.backbone import Cut, Precision
from tests.conftest import GOLDEN
from tests.encodings import Encoding, write_numbered
from tests.test_detector import golden_detector
from train.config import Compile, Experiment
from train.data.cached import training_spans
from train.data.items import VideoItem
from train.data.video_files import probe_item, with_digest
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.engine.loop import WAITING, TrainingRun
from train.engine.session import inference_accelerator
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

JITTER = (0.5, 0.5, 0.5, 0.1)
WORKERS = 4
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
        items = make_videos(plan, config, Path(folder)) * (3 if plan.small else REPEATED)
        for number, case in enumerate(SMALL_CASES if plan.small else CASES):
            out = str(Path(folder) / str(number))
            yield case._asdict() | measure_loop(plan, replace(config, out=out), case, items)


def measure_loop(plan: Plan, config: Experiment, case: LoopCase, items: Sequence[VideoItem]) -> Row:
    """Return the shares of time of a run's second epoch."""
    config = two_epochs(config, case.workers, "off")
    jitter = JITTER if case.jitter else None
    config = replace(config, pixels=replace(config.pixels, colour_jitter=jitter))
    out = Path(config.out)
    out.mkdir()
    frames = FrameCache(out, config.sampling, None) if case.frame_cache else None
    accelerator = new_accelerator(config, plan.device)
    detector = Detector(config, NAMES)
    task = DetectionTask(detector, [*items], None, accelerator, frame_cache=frames)
    return measure_epoch(plan, TrainingRun(task, accelerator, resume=False))


def two_epochs(config: Experiment, workers: int, compiled: Compile) -> Experiment:
    """Return the experiment as a run of two epochs without validation."""
    training = replace(
        config.training,
        workers=workers,
        compile=compiled,
        epochs=4,
        stop_epoch=2,
        warmup_epochs=1,
        trackers=(),
    )
    data = replace(config.data, validation_subset=None)
    return replace(config, training=training, data=data)


def measure_epoch(plan: Plan, run: TrainingRun[DetectionTask]) -> Row:
    """Train two epochs, and return what the second one's time went into.

    `recompiled` are graphs that were compiled in it; the first one has all shapes that there are.
    """
    marks, update = list[tuple[Any, Any]](), run.update
    # Of each epoch: when it ended, how long it had waited, and what was compiled until then.
    ends: list[tuple[float, float, int]] = []

    def marked(step: int, batches: Sequence[Any]) -> Any:
        first = _mark(plan.device)
        done = update(step, batches)
        marks.append((first, _mark(plan.device)))
        if (step + 1) % run.updates == 0:
            synchronise(plan.device)
            waited = run.watch.seconds().get(WAITING, 0.0)
            ends.append((time.perf_counter(), waited, count_compiled()))
        return done

    run.update = marked  # type: ignore[method-assign]
    run.train()
    (since, waited, compiled), (until, waited_in_all, compiled_in_all) = ends
    took = until - since
    busy = sum(_between(*pair) for pair in marks[run.updates :])
    return {
        "updates": run.updates,
        "seconds_per_update": took / run.updates,
        "busy_share": busy / took,
        "said_to_wait": (waited_in_all - waited) / took,
        "recompiled": compiled_in_all - compiled,
    }


def time_stages(plan: Plan) -> Iterator[Row]:
    """Yield frames a second of extraction's stages, each alone, and of all as a run has them.

    Alone, decoding has one process, and nothing overlaps. A run decodes in workers, whose start
    counts, and stores in a thread; what it says of its stages stands beside its rate.
    """
    sizes = plan.sizes("s", "h")
    with tempfile.TemporaryDirectory() as folder:
        configs = {size: settings(size, 1, "none", folder) for size in sizes}
        items = make_videos(plan, configs[sizes[0]], Path(folder))
        for size, config in configs.items():
            AcceleratorState._reset_state(reset_partial_state=True)
            accelerator = inference_accelerator(config, cpu=plan.device == "cpu")
            with accelerator.device:
                backbone = Backbone(config.backbone).eval()
            hold_frozen(backbone, config.training.precision, config.pixels.size)
            spans = training_spans(items, config.sampling, config.direction, config.cache.span)
            frames = sum(span.window.samples for span in spans)
            began = time.perf_counter()
            pieces = [
                [*job_pieces([PassInput(0, span, None)], config.pixels, accelerator.device)]
                for span in spans
            ]
            decoding = {"decode": time.perf_counter() - began}
            cuts: tuple[Cut, ...] = config.backbone.depth // 2, "features"
            for cut in cuts:
                of = backbone, config.pixels, config.training.precision, config.cache, "noise"
                with Store.open(Path(folder) / f"{size} {cut} alone", "a") as store:
                    alone = time_each_stage(plan, Activations(store, *of), spans, pieces, cut)
                with Store.open(Path(folder) / f"{size} {cut} together", "a") as store:
                    wanted = passes.SpanRequest(Activations(store, *of), spans, (cut,))
                    made, said = passes.plan([wanted], accelerator), io.StringIO()
                    began = time.perf_counter()
                    with redirect_stdout(said):
                        refresh(made, accelerator, 0 if plan.small else WORKERS)
                    together = {"together": time.perf_counter() - began}
                seconds = decoding | alone | together
                rates = {f"{stage}_frames_per_s": frames / s for stage, s in seconds.items()}
                yield {"size": size, "cut": cut} | rates | {"said": said.getvalue().strip()}


def time_each_stage(
    plan: Plan,
    activations: Activations,
    spans: Sequence[Span],
    pieces: Sequence[Sequence[Piece]],
    cut: Cut,
) -> dict[str, float]:
    """Return the seconds of what comes after decoding, one after the other.

    Args:
        pieces: of every span.
    """
    device, places = torch.device(plan.device), activations.cached_cuts()
    if device.type == "cuda":
        pieces = [[piece.pin_memory() for piece in some] for some in pieces]
    found = list[tuple[Cached, Span, torch.Tensor, int]]()

    def keep(place: Cached, span: Span, rows: torch.Tensor, first: int) -> None:
        found.append((place, span, rows.clone(), first))

    def copy() -> None:
        copied[:] = [[piece.to(device) for piece in some] for some in pieces]

    def compute() -> None:
        found.clear()
        for span, some in zip(spans, copied, strict=True):
            one = activations.start_pass(places, span, None, (cut,), write=keep)
            for piece in some:
                one.push(piece)

    def fetch() -> None:
        found[:] = [(place, span, rows.cpu(), first) for place, span, rows, first in found]

    def write() -> None:
        for rows in found:
            activations.write(*rows)
        activations.close()

    copied = list[list[Piece]]()
    copy()
    compute()  # chooses kernels
    return {work.__name__: time_step(work, plan.device) for work in (copy, compute, fetch, write)}


def make_videos(plan: Plan, config: Experiment, folder: Path) -> list[VideoItem]:
    """Return videos of one window each, no two alike, that are made in a folder."""
    files = [folder / f"{number}.mp4" for number in range(2 if plan.small else FILES)]
    for number, file in enumerate(files):
        frames = config.sampling.samples * 4 - number
        write_numbered(file, frames, Encoding("libx264", "indexed", size=(240, 320)))
    return [_with_action(file, config) for file in files]


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
