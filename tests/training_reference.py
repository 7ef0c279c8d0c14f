"""Twenty updates of a small detector, computed in float64 without the project's training code.

    python -m tests.training_reference        # writes tests/golden/trajectory.safetensors

Written from the published recipe: focal and DIoU losses over points, divided by a running number of
positives; one bound of the gradient's norm; AdamW; warm-up and cosine; averaged weights. Only the
network's forward pass is the project's, in float64; autograd differentiates it.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from extract.settings.backbone import BackboneConfig, TrunkConfig
from extract.settings.sampling import SamplingConfig
from tests.conftest import GOLDEN
from train.config import DataConfig, DetectionTraining, Experiment
from train.data.batch import Batch
from train.detector.model import Detector
from train.modeling.actionformer import HeadOutput
from train.modeling.config import HeadConfig

FILE = GOLDEN / "trajectory.safetensors"
CLASSES = ("a", "b", "c")
STEPS, PER_EPOCH, WARMUP_EPOCHS, EPOCHS = 20, 4, 2, 8
RATE, ADAPTER_RATE, DECAY, CLIP, KEEP = 2e-3, 4e-3, 0.05, 1.0, 0.9
SMOOTHING, BOUNDARY_WEIGHT, POSITIVES = 0.1, 0.5, 25.0
LEVELS, LENGTH, VALID = 3, 32, (32, 21)
TRUTH = (((3.0, 9.5, 0), (4.2, 7.0, 2), (14.0, 30.0, 1)), ((1.0, 18.0, 2), (6.3, 9.9, 1)))


def experiment() -> Experiment:
    """Return the settings of the run, for the project's own training."""
    return Experiment(
        out="unused",
        data=DataConfig(annotations="unused", videos="unused"),
        sampling=SamplingConfig(window_size=LENGTH),
        backbone=BackboneConfig(TrunkConfig(16, 2, 2, image_size=32, drop_path=0.0)),
        head=HeadConfig(width=8, heads=2, stem_blocks=1, levels=LEVELS, drop_path=0.0),
        training=DetectionTraining(
            epochs=EPOCHS,
            stop_epoch=EPOCHS,
            warmup_epochs=WARMUP_EPOCHS,
            global_batch=1,
            workers=0,
            lr=RATE,
            backbone_lr=ADAPTER_RATE,
            weight_decay=DECAY,
            clip_norm=CLIP,
            ema_decay=KEEP,
            label_smoothing=SMOOTHING,
            precision="fp32",
            boundary_weight=BOUNDARY_WEIGHT,
            positives=POSITIVES,
        ),
    )


def batch() -> Batch:
    """Return the two windows that all updates see."""
    video = np.random.default_rng(0).integers(0, 256, (2, 3, LENGTH, 32, 32), dtype=np.uint8)
    rows = [torch.tensor(actions) for actions in TRUTH]
    return Batch(
        videos=("one", "two"),
        windows=(),
        inputs=(torch.from_numpy(video),),
        mask=torch.arange(LENGTH) < torch.tensor(VALID)[:, None],
        reflection=torch.tensor([LENGTH - 1.0, LENGTH - 1.0]),
        segments=(tuple(actions[:, :2] for actions in rows),),
        labels=tuple(actions[:, 2].long() for actions in rows),
    )


@torch.no_grad()
def set_weights(module: nn.Module) -> None:
    """Draw all weights by their names, whatever the version of torch."""
    for name, tensor in module.named_parameters():
        seed = zlib.crc32(name.encode())
        drawn = np.random.default_rng(seed).standard_normal(tuple(tensor.shape))
        if tensor.ndim > 1:
            drawn *= 0.7 / math.sqrt(math.prod(tensor.shape[1:]))
        elif name.endswith(("weight", "gamma")):
            drawn = 1 + 0.05 * drawn
        else:
            drawn *= 0.05
        tensor.copy_(torch.from_numpy(drawn.astype(np.float32)))


class Point(NamedTuple):
    """What a point of one window learns: classes, and distances in strides if it has a segment."""

    valid: bool
    labels: set[int]
    distances: tuple[float, float] | None


def points(window: int) -> Iterator[Point]:
    """Yield the points of a window, level by level (ActionFormer, section 3.3)."""
    for level in range(LEVELS):
        stride = 2.0**level
        low = 0.0 if level == 0 else 2.0 ** (level + 1)
        high = 10_000.0 if level == LEVELS - 1 else 2.0 ** (level + 2)
        for time in np.arange(0, LENGTH, stride).tolist():
            found = []
            for start, end, label in TRUTH[window]:
                left, right, center = time - start, end - time, (start + end) / 2
                near = abs(time - center) < 1.5 * stride
                if near and left > 0 and right > 0 and low <= max(left, right) <= high:
                    found.append((end - start, left / stride, right / stride, int(label)))
            shortest = min(found, default=None)
            if shortest is None:
                yield Point(time < VALID[window], set(), None)
                continue
            length, *distances, _ = shortest
            same = {label for other, _, _, label in found if other <= length + 1e-3}
            yield Point(time < VALID[window], same, (distances[0], distances[1]))


def losses(output: HeadOutput) -> tuple[Tensor, Tensor, int]:
    """Return the sums of the classes' and the boundaries' losses, and the positives."""
    logits, distances, _ = output.flat()
    focal = boundaries = logits.new_zeros(())
    positives = 0
    for window in range(2):
        for row, point in enumerate(points(window)):
            if not point.valid:
                continue
            hard = torch.tensor([float(k in point.labels) for k in range(len(CLASSES))])
            t = hard.double() * (1 - SMOOTHING) + SMOOTHING / (len(CLASSES) + 1)
            p = torch.sigmoid(logits[window, row])
            p_t, alpha = p * t + (1 - p) * (1 - t), 0.25 * t + 0.75 * (1 - t)
            entropy = -t * torch.log(p) - (1 - t) * torch.log(1 - p)
            focal = focal + (alpha * (1 - p_t) ** 2 * entropy).sum()
            if point.distances is None:
                continue
            positives += 1
            (a, b), (c, d) = distances[window, row], point.distances
            overlap = torch.clamp(a, max=c) + torch.clamp(b, max=d)
            iou = overlap / (a + b + c + d - overlap)
            gap = (b - a - d + c) / 2
            whole = torch.clamp(a, min=c) + torch.clamp(b, min=d)
            boundaries = boundaries + 1 - iou + (gap / whole) ** 2
    return focal, boundaries, positives


def rate(step: int) -> float:
    """Return the share of the full rate: 0 to 1 in the warm-up, then half a cosine."""
    warmup, total = WARMUP_EPOCHS * PER_EPOCH, EPOCHS * PER_EPOCH
    if step < warmup:
        return step / (warmup - 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def trajectory() -> dict[str, NDArray[np.float64]]:
    """Return what every update did, and the weights and averaged weights at the end."""
    detector = Detector(experiment(), CLASSES)
    set_weights(detector)
    detector.double().train()
    given = batch()
    learning = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    first = {name: p.detach().numpy().copy() for name, p in learning.items()}
    weights = {name: value.copy() for name, value in first.items()}
    mean = {name: value.copy() for name, value in first.items()}
    m = {name: np.zeros_like(value) for name, value in first.items()}
    v = {name: np.zeros_like(value) for name, value in first.items()}
    normaliser, lines = POSITIVES, []
    for step in range(STEPS):
        (output,) = detector(given.inputs, given.mask, given.reflection)
        focal, boundaries, positives = losses(output)
        normaliser = 0.9 * normaliser + 0.1 * max(positives, 1)
        focal, boundaries = focal / normaliser, BOUNDARY_WEIGHT * boundaries / normaliser
        found = torch.autograd.grad(focal + boundaries, list(learning.values()))
        gradients = {name: g.numpy() for name, g in zip(learning, found, strict=True)}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        lines.append([focal.item(), boundaries.item(), normaliser, norm, rate(step)])
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, CLIP / (norm + 1e-6))
            of_head = ".head." in name
            lr = rate(step) * (RATE if of_head else ADAPTER_RATE)
            if not of_head or gradient.ndim > 1:
                weights[name] *= 1 - lr * DECAY
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient**2
            m_hat, v_hat = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            weights[name] -= lr * m_hat / (np.sqrt(v_hat) + 1e-8)
            mean[name] = KEEP * mean[name] + (1 - KEEP) * weights[name]
        _put(learning, weights)
    share = KEEP**STEPS  # of the initial weights
    return (
        {"updates": np.array(lines)}
        | {f"weights.{name}": value for name, value in weights.items()}
        | {f"mean.{n}": (value - share * first[n]) / (1 - share) for n, value in mean.items()}
    )


@torch.no_grad()
def _put(learning: Mapping[str, Tensor], weights: Mapping[str, NDArray[np.float64]]) -> None:
    for name, parameter in learning.items():
        parameter.copy_(torch.from_numpy(weights[name]))


if __name__ == "__main__":
    save_file(trajectory(), FILE)
