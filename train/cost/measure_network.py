"""What training costs here: short trials on a few of the user's videos and on the device."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from extract.backbone.backbone import Backbone, Cut
from extract.sampling.units import CLIP_FRAMES, CLIP_STEPS
from extract.transcoding.proxy import ProxyConfig
from extract.video.reader import VideoError
from train.cost.measure_reading import (
    Making,
    Reading,
    as_a_worker,
    read,
    read_proxy,
    read_stored,
    training_window,
)
from train.cost.workload import proxy_side, with_block
from train.data.videos import VideoItem
from train.detector.model import Detector
from train.detector.training import build_optimizer
from train.engine.optim import Average
from train.errors import translate_oom
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

FILES = 3  # videos that are tried
REPEATS = 3  # the first one warms up, another may meet some noise
ENOUGH_S = 2.0  # what takes longer is tried over fewer clips, and once


@dataclass(frozen=True)
class Passes:
    """Seconds on the device: forward alone, and forward and back."""

    tested_s: float
    trained_s: float


@dataclass(frozen=True)
class NetworkCost:
    """What the network costs, as far as the experiment lets it learn.

    Args:
        clip: one clip through one stream's backbone; `part`: from a stored block on, None where
            nothing would learn behind it.
        head: one window through all behind the backbones; back with the update of the weights.
    """

    clip: Passes
    part: Passes | None
    head: Passes


@dataclass(frozen=True)
class Trials:
    """What was measured, on `videos`; proxies None where none is large enough for the inputs."""

    videos: tuple[str, ...]
    seconds: float
    raw: Reading
    frames: Reading
    proxies: Reading | None
    making: Making | None
    network: NetworkCost


def measure(
    detector: Detector, items: Sequence[VideoItem], accelerator: Accelerator, k: int | None
) -> Trials:
    """Try what the ways to train are made of, on a few videos; shows a bar.

    Args:
        detector: on its device; its weights are moved.
        items: training videos with an action, whose files are there.
        k: the block from which on adapters would learn on a stored block.

    Raises:
        VideoError: not one of the videos can be read.
        MemoryError: the device's memory is too small.
        OSError: the system's folder for temporary files has no room for some megabytes.
    """
    config, began = detector.config, time.monotonic()
    side = proxy_side(config.pixels)
    step = -(-len(items) // FILES)
    chosen = items[step // 2 :: step]
    tried, raw, proxies, made = list[VideoItem](), list[Reading](), list[Reading](), list[Making]()
    problem: VideoError | None = None
    with (
        tempfile.TemporaryDirectory() as name,
        tqdm(total=2 * len(chosen) + 4, desc="trials", leave=False) as bar,
    ):
        folder = Path(name)
        with as_a_worker(config.training.workers):
            for item in chosen:
                try:
                    window = training_window(item, config)
                    raw.append(read(item.path, window.frames, config.pixels))
                    tried.append(item)
                    bar.update()
                    if side is not None:
                        settings = ProxyConfig(side)
                        making, reading = read_proxy(folder, item, window, settings, config.pixels)
                        made.append(making)
                        proxies.append(reading)
                    bar.update()
                except VideoError as error:  # the run will say so
                    problem = error
            if not raw or (side is not None and not made):
                assert problem is not None
                raise problem
            frames = read_stored(folder, tried[0], config.pixels)
            bar.update()
        with translate_oom("training.batch_size"):
            network = _network(detector, accelerator, k, bar)
    return Trials(
        tuple(item.name for item in tried),
        time.monotonic() - began,
        Reading(*_means(raw)),
        frames,
        Reading(*_means(proxies)) if proxies else None,
        Making(*_means(made)) if made else None,
        network,
    )


def _means(of: Iterable[Reading | Making]) -> list[float]:
    return [float(np.mean(values)) for values in zip(*map(astuple, of), strict=True)]


def _network(
    detector: Detector, accelerator: Accelerator, k: int | None, bar: "tqdm[None]"
) -> NetworkCost:
    whole = _passes(detector.streams[0].backbone, None, detector, accelerator)
    bar.update()
    part = None
    if k is not None:
        config = with_block(detector.config, k).backbone
        with accelerator.device:  # of random numbers: they take as long as any others
            backbone = Backbone(replace(config, weights=None))
        part = _passes(backbone, config.last_frozen_cut, detector, accelerator)
        del backbone
    bar.update()
    head = _head(detector, accelerator)
    bar.update()
    return NetworkCost(whole, part, head)


def _passes(
    backbone: nn.Module, start: Cut | None, detector: Detector, accelerator: Accelerator
) -> Passes:
    """Return what a clip costs from pixels or from a cut on."""
    tested_s = _clip_s(backbone.eval(), start, False, detector, accelerator)
    return Passes(tested_s, _clip_s(backbone.train(), start, True, detector, accelerator))


def _clip_s(
    backbone: nn.Module,
    start: Cut | None,
    learns: bool,
    detector: Detector,
    accelerator: Accelerator,
) -> float:
    """Return the seconds of a clip, in a pass over those of a batch or over what is enough."""
    config, device = detector.config, accelerator.device
    most = config.sampling.samples // CLIP_FRAMES * config.training.batch_size
    size = config.pixels.size
    positions = (size // config.backbone.trunk.patch) ** 2
    blocks = len(config.backbone.adapted_blocks) if start == "ladder" else 1

    def passing(clips: int) -> Callable[[], object]:
        if start is None:
            shape = (1, 3, clips * CLIP_FRAMES, size, size)
            inputs = torch.randint(256, shape, dtype=torch.uint8, device=device)
        else:
            width = blocks * config.backbone.width
            inputs = torch.randn(1, clips * CLIP_STEPS, positions, width, device=device)

        def work() -> None:
            with torch.set_grad_enabled(learns), accelerator.autocast():
                total = backbone(inputs, start).float().sum()
            if total.requires_grad:
                total.backward()
            backbone.zero_grad()

        return work

    one_s = _seconds(passing(1), device)
    clips = min(most, int(ENOUGH_S / one_s))
    return one_s if clips < 2 else _seconds(passing(clips), device) / clips


def _head(detector: Detector, accelerator: Accelerator) -> Passes:
    """Return what a window costs behind the backbones, with the update of the weights."""
    config, device = detector.config, accelerator.device
    steps, streams, classes = config.sampling.window_size, detector.streams, len(detector.classes)
    points = pyramid_points(steps, config.head.levels, device)
    segments = torch.tensor([[0.1, 0.3], [0.5, 0.55]], device=device) * steps
    labels = torch.zeros(2, dtype=torch.long, device=device)

    def inputs(windows: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        shape = (windows, config.backbone.width, config.sampling.samples // 2)
        features = [torch.randn(shape, device=device) for _ in streams]
        mask = torch.ones(windows, steps, dtype=torch.bool, device=device)
        return features, mask, torch.full((windows,), steps - 1.0, device=device)

    batch = config.evaluation.batch_size
    tested = inputs(batch)

    def test() -> None:
        with torch.no_grad(), accelerator.autocast():
            detector.predict(*tested)

    detector.eval()
    head_s = _seconds(test, device) / batch
    batch = config.training.batch_size
    features, mask, reflection = inputs(batch)
    for one in features:  # adapters get their gradients through the head
        one.requires_grad_(config.backbone.learns)
    targets = assign_batch(points, [segments] * batch, [labels] * batch, classes)
    optimizer = build_optimizer(detector, config.training)
    average = Average(detector, config.training.ema_decay)
    parts: list[nn.Module] = [*streams, *([detector.fusion] if detector.fusion else [])]

    def train() -> None:
        with accelerator.autocast():
            outputs = detector(features, mask, reflection, "features")
        losses = [torch.stack(detection_losses(output, targets)).sum() for output in outputs]
        (torch.stack(losses).sum() / 100).backward()
        for part in parts:
            if len(list(part.parameters())):
                clip_grad_norm_(part.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update(detector)

    detector.train()
    return Passes(head_s, _seconds(train, device) / batch)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of some repeats, or those of the first long one."""
    least = math.inf
    for _ in range(REPEATS):
        _wait_for(device)
        began = time.perf_counter()
        work()
        _wait_for(device)
        seconds = time.perf_counter() - began
        least = min(least, seconds)
        if seconds > ENOUGH_S:
            break
    return least


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
