"""The parts of `benchmarks.gpu`: each returns rows of its own, and depends on no other."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_steps import (
    NAMES,
    Step,
    build_extraction_step,
    build_training_step,
    measure,
    noise_batch,
    noise_video,
    settings,
    settle,
    synchronise,
    time_step,
)
from benchmarks.sizes import experiment
from evaluate.annotations import Detection
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import hold_frozen
from extract.backbone.precision import autocast
from extract.sampling.windows import evaluation_windows
from extract.settings.backbone import Precision, Recompute, RecomputeSetting
from extract.settings.units import CLIP_FRAMES
from train.data.items import VideoItem
from train.detector.model import Detector
from train.engine.session import settle_device
from train.postprocessing.candidates import Candidates, merge_windows, predict_each_window

Row = dict[str, Any]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
ATTENTION = "flash", "fmha", "sdpa"  # in the names of kernels: FlashAttention's, xFormers', cuDNN's
LONG = "v2-g, 1536 frames"
LARGE = ("h", 2), ("v2-g", 2), (LONG, 1), (LONG, 2), (f"{LONG}, side", 2)


@dataclass(frozen=True)
class Plan:
    """What is measured: on which device, and whether only to try the script.

    Args:
        small: sizes that a CPU manages.
    """

    device: str
    small: bool

    @property
    def repeats(self) -> int:
        return 1 if self.small else 10

    def sizes(self, *published: str) -> tuple[str, ...]:
        return ("tiny",) if self.small else published

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """With fp16 the loop scales gradients, which only a GPU can."""
        return ("bf16",) if self.device == "cpu" else ("bf16", "fp16")


def compare_with_cpu(plan: Plan) -> Iterator[Row]:
    """Yield how far features in float32 are from a CPU's, with TF32 off and on."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings("tiny", 1, "none", folder, "fp32")
    torch.manual_seed(0)
    backbone = Backbone(config.backbone).eval()
    (pixels,) = noise_batch(config, "cpu").inputs
    with torch.no_grad():
        expected = backbone(pixels)
        moved, there = backbone.to(plan.device), pixels.to(plan.device)
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            for tf32 in (False, True):
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
                found = moved(there).cpu()
                yield {"tf32": tf32, "relative_error": relative_error(found, expected)}
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def time_training(plan: Plan) -> Iterator[Row]:
    """Yield steps of S and B at two windows by precision, recompute and compiled blocks."""
    for size in plan.sizes("s", "b"):
        for precision in plan.precisions:
            for recompute in RECOMPUTE:
                for compiled in (False, True):
                    row: Row = {"size": size, "precision": precision, "recompute": recompute}
                    yield (
                        row
                        | {"compiled": compiled}
                        | measure_training(plan, size, 2, precision, recompute, compiled)
                    )


def measure_memory(plan: Plan) -> Iterator[Row]:
    """Yield the peak memory of the large sizes: recomputed in full, and as a run would choose."""
    for size, windows in (("tiny", 1),) if plan.small else LARGE:
        with tempfile.TemporaryDirectory() as folder:
            chosen = settle(settings(size, windows, "auto", folder), plan.device)
        taken: dict[str, RecomputeSetting] = {"full": "full", "auto": chosen.backbone.recompute}
        for asked, kind in taken.items():
            row: Row = {"size": size, "windows": windows, "asked": asked, "recompute": kind}
            yield row | measure_training(plan, size, windows, "bf16", kind, compiled=False)


def measure_training(
    plan: Plan,
    size: str,
    batch: int,
    precision: Precision,
    recompute: RecomputeSetting,
    compiled: bool,
) -> Row:
    """Return a step's time and peak, and how long the host takes to enqueue it and how much."""
    steps = list[Step]()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(size, batch, recompute, folder, precision)

        def build() -> Step:
            steps.append(build_training_step(config, plan.device, compiled))
            return steps[0]

        row = measure(build, plan.repeats, plan.device)
        return row if "failed" in row else row | describe_enqueueing(steps[0], plan)


def describe_enqueueing(step: Step, plan: Plan) -> Row:
    """Return how long the host takes until a step returns, and the kernels that it starts.

    `attention_share` is that of kernels whose names are those of fused attention.
    """
    taken = []
    for _ in range(plan.repeats):
        synchronise(plan.device)
        taken.append(time_step(step, "cpu"))  # without waiting for the device
    synchronise(plan.device)
    with torch.profiler.profile() as profiled:
        step()
        synchronise(plan.device)
    names = [
        event.name.lower()
        for event in profiled.events()
        if event.device_type.name.lower() == plan.device and not event.is_user_annotation
    ]
    attention = sum(any(part in name for part in ATTENTION) for name in names)
    share = attention / max(len(names), 1)
    return {"enqueue_s": statistics.median(taken), "kernels": len(names), "attention_share": share}


def compare_adapter_convs(plan: Plan) -> Iterator[Row]:
    """Yield forward and backward of an adapter's convolution over time, done in three ways."""
    shape = (1, 16, 4, 8) if plan.small else (2, 384, 100, 320)  # H: windows, steps, places, width
    dtype = torch.float32 if plan.device == "cpu" else torch.bfloat16
    x = torch.randn(shape, device=plan.device, dtype=dtype, requires_grad=True)
    weight = torch.randn(shape[-1], 1, 3, device=plan.device, dtype=dtype, requires_grad=True)
    for way in ADAPTER_CONVS:

        def build(way: Conv = way) -> Step:
            return lambda: torch.autograd.grad(way(x, weight).sum(), (x, weight))[0]

        yield {"way": way.__name__} | measure(build, plan.repeats, plan.device)


def as_adapters_do(x: Tensor, weight: Tensor) -> Tensor:
    """Return [B, T, P, C] convolved over T with [C, 1, 3]: to torch it is channels last."""
    picture, taps = x.permute(0, 3, 1, 2), weight.unsqueeze(-1)
    return F.conv2d(picture, taps, padding=(1, 0), groups=len(weight)).permute(0, 2, 3, 1)


def channels_first(x: Tensor, weight: Tensor) -> Tensor:
    """Return the same, from a copy in the other layout."""
    return as_adapters_do(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), weight)


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """Return the same, as a sum of three products."""
    padded, steps = F.pad(x, (0, 0, 0, 0, 1, 1)), x.shape[1]
    before, here, behind = weight.squeeze(1).unbind(-1)
    return padded[:, :steps] * before + x * here + padded[:, 2:] * behind


Conv = Callable[[Tensor, Tensor], Tensor]
ADAPTER_CONVS: tuple[Conv, ...] = (as_adapters_do, channels_first, shifted)


def time_extraction(plan: Plan) -> Iterator[Row]:
    """Yield the features' frames a second by how many clips are computed at a time."""
    for size in plan.sizes("s", "h"):
        for clips in (1, 2) if plan.small else (8, 32, 64):
            with tempfile.TemporaryDirectory() as folder:
                config = settings(size, 1, "none", folder)
            factor = config.sampling.scale_factor
            sampling = replace(config.sampling, window_size=clips * CLIP_FRAMES // factor)
            head = replace(config.head, levels=1)
            config = replace(config, sampling=sampling, head=head)
            build = partial(build_extraction_step, config, plan.device, False)
            row = measure(build, plan.repeats, plan.device)
            rate = {} if "failed" in row else {"frames_per_s": clips * CLIP_FRAMES / row["step_s"]}
            yield {"size": size, "clips": clips} | row | rate


def time_validation(plan: Plan) -> Iterator[Row]:
    """Yield how long the network takes for 200 windows of ten videos, and suppression behind it.

    Suppression is timed on one thread; in a run it goes on beside the network, on several.
    """
    (size,) = plan.sizes("s")
    at_once = experiment(size).evaluation.batch_size
    videos, batches = (1, 1) if plan.small else (10, 20 // at_once)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(size, at_once, "none", folder)
    device, overlap = torch.device(plan.device), config.sampling.validation_overlap
    settle_device(device, config)
    with device:
        detector = Detector(config, NAMES).eval()
    hold_frozen(detector, config.training.precision, config.pixels.size)
    length = 1 + (batches * at_once - 1) * (1 - overlap)
    items = [noise_video(number, length, 1, config) for number in range(videos)]
    noise = noise_batch(config, plan.device)

    def predict(item: VideoItem) -> list[Candidates]:
        windows = evaluation_windows(item, overlap, config.sampling)
        given = [
            replace(noise, videos=(item.name,) * at_once, windows=tuple(some))
            for some in zip(*[iter(windows)] * at_once, strict=True)
        ]
        with autocast(config.training.precision, device):
            found = predict_each_window(detector.predict_batch, given, config.evaluation, device)
            return [some for _, by_name in found for some in by_name[detector.main_output]]

    def suppress(item: VideoItem, found: list[Candidates]) -> list[Detection]:
        return merge_windows(found, item, NAMES, config.evaluation)

    suppress(items[0], predict(items[0]))  # chooses kernels, and compiles the loops
    began = time.perf_counter()
    found = [predict(item) for item in items]
    between = time.perf_counter()  # candidates are on the host
    kept = [suppress(*each) for each in zip(items, found, strict=True)]
    yield {
        "size": size,
        "windows": sum(map(len, found)),
        "network_s": between - began,
        "suppression_s": time.perf_counter() - between,
        "candidates": sum(len(some.scores) for of in found for some in of),
        "detections": sum(map(len, kept)),
    }


def repeat_training(plan: Plan) -> Iterator[Row]:
    """Yield the largest difference of the losses of the same steps, made twice and in float32."""
    (size,), curves = plan.sizes("s"), list[Tensor]()
    for precision in ("bf16", "bf16", "fp32"):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            config = settings(size, 2, "full", folder, precision)
            step = build_training_step(config, plan.device, compiled=False)
            losses = [step() for _ in range(3 if plan.small else 50)]
        curves.append(torch.stack(losses).sum(-1).cpu())
    first, second, whole = curves
    yield {
        "steps": len(first),
        "between_runs": float((first - second).abs().max()),
        "from_fp32": float((first - whole).abs().max()),
        "last_loss": float(first[-1]),
    }


PARTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "float32 against a CPU": compare_with_cpu,
    "training steps": time_training,
    "memory": measure_memory,
    "adapter convolutions": compare_adapter_convs,
    "extraction": time_extraction,
    "validation": time_validation,
    "the same steps twice": repeat_training,
}
