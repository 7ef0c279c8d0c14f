"""Fitting of a `calibrated` fusion's class weights: one logistic regression per class."""

from collections.abc import Iterable

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from configs.progress import ProgressBar
from extract.parallel.processes import gather_objects
from train.data.batch import Batch
from train.detector.model import Detector
from train.errors import translate_worker_death
from train.modeling.actionformer import HeadOutput
from train.modeling.fusion import ClassWeights, PredictionFusion, align
from train.modeling.points import assign_batch, pyramid_points

MOST_POINTS = 500_000  # of a regression; two weights and a bias need no more


@torch.inference_mode()
def fit_class_weights(
    detector: Detector, windows: Iterable[Batch], accelerator: Accelerator
) -> None:
    """Fit the weights to the streams' predictions in windows of videos that they did not learn.

    A class that never occurs in them keeps the mean.

    Args:
        detector: in eval mode, on the accelerator's device; its fusion is changed.
        windows: this process's share.
    """
    fusion = detector.fusion
    assert isinstance(fusion, PredictionFusion) and isinstance(fusion.mix, ClassWeights)
    seen = []
    with accelerator.autocast(), translate_worker_death():
        for batch in ProgressBar(
            windows, desc="fitting", leave=False, disable=not accelerator.is_main_process
        ):
            seen.append(_points(detector, fusion, batch.to(accelerator.device).turned()))
    # A process may have had no window.
    shares = [share for share in gather_objects([seen]) if share]
    pairs = [pair for share in shares for pair in share]
    scores, truth = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    step = -(-len(scores) // MOST_POINTS)
    # Imported by the one fusion that is fitted: other runs on a cache would wait a second for it.
    from sklearn.linear_model import LogisticRegression

    for label in range(truth.shape[1]):
        hit = truth[::step, label] > 0
        if hit.any():
            fitted = LogisticRegression(C=1e3).fit(scores[::step, :, label], hit)
            fusion.mix.weight[:, label] = torch.from_numpy(fitted.coef_[0])
            fusion.mix.bias[label] = float(fitted.intercept_[0])


def _points(
    detector: Detector, fusion: PredictionFusion, batch: Batch
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both streams' logits at every valid point, [n, 2, K], and the truth [n, K]."""
    features = detector.features(batch.inputs, batch.start)
    first, second = detector.outputs(features, batch.mask)
    other = align(
        second, first, detector.reflection_if_opposed(batch.reflection), fusion.config.pairing
    )
    levels, length, device = len(first.masks), batch.mask.shape[1], batch.mask.device
    of = detector.config.training
    points = pyramid_points(length, levels, device, of.overlapping_ranges)
    classes = len(detector.classes)
    targets = assign_batch(points, batch.segments[0], batch.labels, classes, of.every_class)
    valid = first.flat()[2]
    logits = torch.stack([_logits(first)[valid], _logits(other)[valid]], 1)
    return logits.float().cpu().numpy(), targets.classes[valid].cpu().numpy()


def _logits(output: HeadOutput) -> torch.Tensor:
    return output.flat()[0]
