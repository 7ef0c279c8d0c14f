"""Pictures and tables of what a run did."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from evaluate.compare import Estimate
from evaluate.mean_ap import MeanAP

MOST_NAMES = 60  # more would be written over each other


def draw_curves(
    metrics: Sequence[Mapping[str, Any]], path: Path, losses: Sequence[str], measure: str
) -> None:
    """Draw losses and a validation score over steps (lines of metrics.jsonl) into a PNG."""
    steps = [line for line in metrics if "loss" in line]
    checks = [line for line in metrics if "validation" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in ("loss", *losses):
        left.plot([line["step"] for line in steps], [line[name] for line in steps], label=name)
    left.set(xlabel="step", ylabel="loss", title="training")
    left.legend()
    scores = [line["validation"][measure] for line in checks]
    right.plot([line["step"] for line in checks], scores, marker="o")
    right.set(xlabel="step", ylabel=measure.replace("_", " "), title="validation", ylim=(0, 1))
    save(figure, path)


def draw_tious(result: MeanAP, path: Path) -> None:
    """Draw mAP over tIoU, the average as a line, into a PNG."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(list(result.per_tiou), list(result.per_tiou.values()), marker="o")
    axes.axhline(result.average, linestyle="--", label=f"average {result.average:.3f}")
    axes.set(xlabel="tIoU", ylabel="mAP", ylim=(0, 1))
    axes.legend()
    save(figure, path)


def draw_rows(
    averages: Mapping[str, Estimate],
    differences: Mapping[str, Mapping[float, Estimate]],
    reference: str | None,
    path: Path,
) -> None:
    """Draw rows of a study into a PNG: averages, and differences to one row over tIoU.

    Args:
        averages: average mAP by row; `differences`: to the row `reference`, {row: {tIoU: mAP}}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    names = list(averages)
    for place, (name, (mean, low, high)) in enumerate(averages.items()):
        left.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3)
        right.plot([], [], label=name)  # the same colours on both sides
        if name in differences:
            tious = list(differences[name])
            means, lows, highs = zip(*differences[name].values(), strict=True)
            colour = f"C{place % 10}"
            right.plot(tious, means, marker="o", color=colour)
            right.fill_between(tious, lows, highs, color=colour, alpha=0.12)
    left.set(xlabel="average mAP, 95 % over videos", yticks=range(len(names)), yticklabels=names)
    left.invert_yaxis()
    right.axhline(0, color="grey", linewidth=1)
    right.set(xlabel="tIoU", ylabel="mAP", title=f"difference to {reference}" if reference else "")
    right.legend(fontsize="small")
    save(figure, path)


def draw_dataset(
    examples: Mapping[str, Mapping[str, int]],
    lengths: Sequence[float],
    ranges: Sequence[tuple[float, float]],
    window: int,
    videos: Sequence[tuple[float, float]],
    path: Path,
) -> None:
    """Draw what a dataset holds into a PNG: classes, lengths of actions, videos.

    Args:
        examples: number of actions by subset and class.
        lengths: of actions, in feature steps; `window`: of a window.
        ranges: distances to the farther boundary that each level of the pyramid learns, in feature
            steps; the point in an action's middle has half its length to go.
        videos: (duration in seconds, frames per second) of each.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    names = list(next(iter(examples.values()), ()))
    height = 0.8 / max(1, len(examples))
    for number, (subset, counts) in enumerate(examples.items()):
        places = [place + number * height for place in range(len(names))]
        left.barh(places, [counts[name] for name in names], height, label=subset)
    left.set(xlabel="actions", title="classes", yticks=range(len(names)), yticklabels=names)
    left.tick_params(axis="y", labelsize=8 if len(names) <= 30 else 4)
    if len(names) > MOST_NAMES:
        left.set(yticks=[])
    left.margins(x=0.3)  # room for the legend
    left.invert_yaxis()
    left.legend(loc="lower right", fontsize="small")
    longest = max([window, *lengths])
    edges = [0.25 * 2 ** (0.25 * step) for step in range(4 * math.ceil(math.log2(8 * longest)))]
    # Those below the first edge belong to it: nothing is left out of the picture.
    middle.hist([max(edges[0], length) for length in lengths], edges, color="C0", zorder=2)
    for level, (low, high) in enumerate(ranges):
        begin, end = max(2 * low, edges[0]), min(2 * high, edges[-1])
        if begin < end:
            middle.axvspan(begin, end, alpha=0.2 if level % 2 else 0.06, color="C1")
            middle.annotate(
                f" {level}", (begin, 0.99), xycoords=("data", "axes fraction"), va="top"
            )
    middle.axvline(window, color="C3", linestyle="--", label=f"window, {window}")
    middle.set(xlabel="feature steps (shaded: levels of the pyramid)", ylabel="actions")
    middle.set(xscale="log", title="lengths of training actions", xlim=(edges[0], edges[-1]))
    middle.legend()
    rates = [fps for _, fps in videos]
    right.scatter([duration for duration, _ in videos], rates, s=12, alpha=0.5)
    right.set(xlabel="duration in s", ylabel="frames per second", title="videos")
    right.set_ylim(0, 1.1 * max([1.0, *rates]))
    save(figure, path)


def draw_confusion(counts: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draw how often each class (rows) was taken for which (columns) into a PNG.

    Args:
        counts: examples [K, K]; rows are shown as shares.
    """
    side = min(12.0, 3 + 0.3 * len(names))
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(picture, label="share of the true class")
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="found", ylabel="true")
    save(figure, path)


def table(result: MeanAP) -> str:
    """Return mAP per class and tIoU as aligned text, all classes last."""
    tious = list(result.per_tiou)
    width = max([len(name) for name in result.per_class] + [len("all classes")])
    lines = [" " * width + "".join(f"  @{tiou:<5g}" for tiou in tious) + "  average"]
    rows = {**result.per_class, "all classes": result.per_tiou}
    for name, values in rows.items():
        numbers = [values[tiou] for tiou in tious]
        cells = "".join(f"  {number:6.4f}" for number in numbers)
        lines.append(f"{name:<{width}}{cells}   {sum(numbers) / len(numbers):.4f}")
    return "\n".join(lines)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG with 100 pixels an inch, aside first, and close it."""
    aside = path.with_suffix(".part")
    figure.savefig(aside, dpi=100, format="png")
    aside.replace(path)
    plt.close(figure)
