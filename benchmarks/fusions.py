"""Ways to join two streams' answers at points that meet, tried on stored features.

    python -m benchmarks.fusions --cache URL --first F0.pt F1.pt … --second R0.pt R1.pt …

Checkpoints are paired in their order; nothing learns, so a pair takes seconds once its features
are stored. Give the same direction twice (F0.pt F1.pt, F1.pt F0.pt) for a control. Prints a table
of mAP on --subset: mean over the pairs, standard deviation, and the difference to the aligned mean.
The one that paid is `fusion.agreement`.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from cache.store import open_cache
from evaluate.mean_ap import mean_average_precision
from train.config import Experiment, with_cache
from train.data.batch import Batch
from train.data.cached import ensure_cached, evaluation_spans
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.detector.detection import window_loader
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.sources import build_detector, merge_configs
from train.engine.checkpoint import load_checkpoint
from train.engine.session import inference_accelerator
from train.modeling.actionformer import HeadOutput
from train.modeling.fusion import align, weigh_by_agreement
from train.postprocessing.candidates import Predictions, merge_windows, predict_windows

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
AVERAGED = TIOUS[:5]
SURE = 0.3  # score from which on a stream counts as sure
Level = tuple[Tensor, Tensor]  # logits [B, K, N], distances [B, 2, N]
Join = Callable[[Level, Level], Level]


def _mean(one: Level, other: Level) -> Level:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


def _sureness(level: Level) -> Tensor:
    return level[0].amax(1, keepdim=True)


def _surer(one: Level, other: Level) -> Level:
    """Boundaries are averaged with weights by the streams' best scores."""
    share = torch.sigmoid(_sureness(one) - _sureness(other))
    return _mean(one, other)[0], share * one[1] + (1 - share) * other[1]


def _both_sure(one: Level, other: Level) -> Level:
    """The partner's boundaries count only where both are sure, else those of the surer stream."""
    first, second = _sureness(one), _sureness(other)
    both = (torch.minimum(first, second).sigmoid() > SURE).expand_as(one[1])
    alone = torch.where(first > second, one[1], other[1])
    scores, boundaries = _mean(one, other)
    return scores, boundaries.where(both, alone)


def _probabilities(one: Level, other: Level) -> Level:
    scores = (one[0].sigmoid() + other[0].sigmoid()) / 2
    return torch.logit(scores.double(), 1e-9).float(), _mean(one, other)[1]


def _highest(one: Level, other: Level) -> Level:
    return torch.maximum(one[0], other[0]), _mean(one, other)[1]


def _lowest(one: Level, other: Level) -> Level:
    return torch.minimum(one[0], other[0]), _mean(one, other)[1]


def _alike(one: Level, other: Level) -> Level:
    """Scores that the streams differ in count less."""
    scores, boundaries = _mean(one, other)
    return scores - (one[0] - other[0]).abs() / 4, boundaries


def _sharper(one: Level, other: Level) -> Level:
    """A control for agreement: what scores that are more extreme do alone."""
    scores, boundaries = _mean(one, other)
    return 1.1 * scores, boundaries


JOINS: dict[str, Join] = {
    "the first stream alone": lambda one, other: one,
    "the second stream alone": lambda one, other: other,
    "mean": _mean,
    "mean, scores 1.1 times as extreme": _sharper,
    "mean, less where scores differ": _alike,
    "mean, boundaries weighted by scores": _surer,
    "mean, the partner's boundaries only where both are sure": _both_sure,
    "mean of probabilities": _probabilities,
    "higher score, mean boundaries": _highest,
    "lower score, mean boundaries": _lowest,
}
AGREEMENT = "mean, times the segments' overlap (`fusion.agreement`)"


def join(one: HeadOutput, other: HeadOutput) -> dict[str, HeadOutput]:
    """Return what every way makes of two streams' predictions at the same points."""
    pairs = list(
        zip(
            zip(one.logits, one.distances, strict=True),
            zip(other.logits, other.distances, strict=True),
            strict=True,
        )
    )
    found = {}
    for name, way in JOINS.items():
        logits, distances = zip(*(way(*pair) for pair in pairs), strict=True)
        found[name] = HeadOutput(logits, distances, one.masks)
    return found | {AGREEMENT: weigh_by_agreement(found["mean"], one, other)}


def score_pair(paths: tuple[str, str], cache: str, subset: str) -> dict[str, dict[float, float]]:
    """Return the mAP at every tIoU that each way reaches with two checkpoints' streams."""
    sources = [(path, load_checkpoint(path, Experiment)) for path in paths]
    overrides = with_cache(["--fusion.method=average", "--training.workers=0"], cache)
    config = merge_configs(None, sources, overrides)
    accelerator, store = inference_accelerator(config), open_cache(cache)
    annotations = load_annotations(config.data)
    items = load_items(
        config.data, annotations, subset, accelerator, store, None, config.sampling.fps
    )
    detector = build_detector(config, sources[0][1].classes, sources).eval()
    detector.to(accelerator.device)
    overlap = config.sampling.test_overlap
    spans = [evaluation_spans(items, overlap, config.sampling, d) for d in config.directions]
    activations = activations_of(detector, store, paths)
    cached, _ = ensure_cached(activations, spans, "features", [items], accelerator, 0)
    windows = window_loader(items, overlap, config, accelerator, cached)
    found = predict_windows(
        lambda batch: _predict(detector, batch), windows, config.evaluation, accelerator.device
    )
    truth = {item.name: item.truth for item in items}
    return {
        name: mean_average_precision(
            truth,
            {
                item.name: merge_windows(of[item.name], item, detector.classes, config.evaluation)
                for item in items
            },
            TIOUS,
        ).per_tiou
        for name, of in found.items()
    }


def _predict(detector: Detector, batch: Batch) -> Predictions:
    outputs = detector.outputs(detector.features(batch.inputs, batch.start), batch.mask)
    one, other = outputs
    other = align(other, one, detector.reflection_if_opposed(batch.reflection), "nearest")
    direction = detector.config.direction
    return {name: ((output, direction),) for name, output in join(one, other).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--first", nargs="+", required=True)
    parser.add_argument("--second", nargs="+", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--subset", default="test")
    args = parser.parse_args()
    if len(args.first) != len(args.second):
        parser.error("--first and --second need as many checkpoints as each other")
    pairs = zip(args.first, args.second, strict=True)
    scored = [score_pair(pair, args.cache, args.subset) for pair in pairs]
    print(f"| {len(scored)} pairs, {args.subset} | mAP 0.3 to 0.7 | to the mean | 0.8 | 0.9 |")
    print("|---|---|---|---|---|")
    for name in scored[0]:
        averages = [statistics.mean(of[name][t] for t in AVERAGED) for of in scored]
        gains = [
            average - statistics.mean(of["mean"][t] for t in AVERAGED)
            for average, of in zip(averages, scored, strict=True)
        ]
        strict = [statistics.mean(of[name][t] for of in scored) for t in (0.8, 0.9)]
        print(
            f"| {name} | {_spread(averages)} | {_spread(gains, '+')} | {strict[0]:.3f} | "
            f"{strict[1]:.3f} |"
        )


def _spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.4f} ± {deviation:.4f}"


if __name__ == "__main__":
    main()
