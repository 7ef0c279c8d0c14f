"""Pictures and tables of what a run did."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.atomic import atomic_path
from evaluate.mean_ap import MeanAP
from evaluate.metrics.bootstrap import Estimate
from evaluate.metrics.precision_recall import RECALLS, Curves

MOST_NAMES = 60  # more would be written over each other
MOST_PANELS = 24
STRIKING = 0.05  # differences of mAP from here on have the full colour
WIDTH = 8.0  # inches: 800 pixels, which every figure fits into with letters that can be read
APART = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#000000")  # Okabe and Ito's

# What a line of metrics.jsonl holds besides the total loss and its parts.
NO_LOSS = {"step", "epoch", "stand_ins", "lr", "learning_rates", "seconds_per_step"}


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files here.

    It takes half a second to import, which a run would spend before its first step, and no picture
    is drawn before its end.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_curves(metrics: Sequence[Mapping[str, Any]], rates: Mapping[str, str], path: Path) -> None:
    """Draw losses, validation scores, learning rates and speed over steps into a PNG.

    Args:
        metrics: lines of metrics.jsonl.
        rates: what learns with each of the learning rates, by its key in the lines.
    """
    lines = [line for line in metrics if "loss" in line]
    checks = [line for line in metrics if "validation" in line]
    figure, axes = pyplot().subplots(2, 2, figsize=(WIDTH, 6.4), layout="constrained")
    (losses, scores), (lrs, speed) = axes
    steps = [line["step"] for line in lines]
    for name in [name for name in (lines[-1] if lines else ()) if name not in NO_LOSS]:
        style = {"color": "black", "linewidth": 1.8} if name == "loss" else {"linewidth": 1.2}
        label = "total" if name == "loss" else name
        losses.plot(steps, [line.get(name, math.nan) for line in lines], label=label, **style)
    losses.set(title="Training loss (lower is better)", xlabel="step", ylim=(0, None))
    _draw_checks(scores, checks)
    for name in (lines[-1] if lines else {}).get("learning_rates", {}):
        values = [line.get("learning_rates", {}).get(name, math.nan) for line in lines]
        lrs.plot(steps, values, label=rates.get(name, f"peak {name}"))
    if not lrs.lines:
        lrs.plot(steps, [line.get("lr", math.nan) for line in lines])
    lrs.set(title="Learning rate", xlabel="step", ylim=(0, None))
    speed.plot(steps, [line.get("seconds_per_step", math.nan) for line in lines], color="#555555")
    speed.set(title="Seconds per step", xlabel="step", ylim=(0, None))
    for axis in axes.flat:
        _finish(axis)
    save_figure(figure, path)


def _draw_checks(axes: Any, checks: Sequence[Mapping[str, Any]]) -> None:
    """Draw validation scores: the first of them, which decides, on top of the others."""
    steps = [line["step"] for line in checks]
    if not checks:
        axes.text(0.5, 0.5, "nothing was validated", ha="center", transform=axes.transAxes)
    names = [name for name in (checks[-1]["validation"] if checks else ()) if "recall" not in name]
    for number, name in enumerate(names):
        values = [line["validation"].get(name, math.nan) for line in checks]
        if number:
            colour = pyplot().get_cmap("viridis")(0.75 * number / len(names))
            axes.plot(steps, values, label=name, color=colour, linewidth=1, marker=".")
        else:
            label = name.replace("_", " ")
            style = {"color": "black", "linewidth": 2.2, "marker": "o", "zorder": 3}
            axes.plot(steps, values, label=label, **style)
    axes.set(title="Validation score (higher is better)", xlabel="step", ylim=(0, 1))


def draw_tious(
    result: MeanAP, path: Path, streams: Mapping[str, MeanAP] = MappingProxyType({})
) -> None:
    """Draw mAP over tIoU, the average as a line, into a PNG.

    Args:
        streams: the same of a detector's single streams, by name.
    """
    figure, axes = pyplot().subplots(figsize=(WIDTH, 3.6), layout="constrained")
    whole = "both streams" if streams else "mAP"
    every = {whole: result, **{f"{name} alone": alone for name, alone in streams.items()}}
    for number, (name, one) in enumerate(every.items()):
        style: dict[str, Any] = {"color": APART[number], "linewidth": 1.2 if number else 2.2}
        label = f"{name} (average {one.average:.3f})"
        axes.plot(list(one.per_tiou), list(one.per_tiou.values()), "o-", label=label, **style)
    if not streams:
        axes.axhline(result.average, linestyle="--", linewidth=1, color=APART[0])
        for tiou, value in result.per_tiou.items():
            place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "zorder": 4}
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.annotate(f"{value:.3f}", (tiou, value), (0, 9), bbox=box, **place)
    axes.set(xlabel="tIoU that a detection must reach to count", ylabel="mAP", ylim=(0, 1.08))
    axes.set_xticks(list(result.per_tiou))
    _finish(axes)
    save_figure(figure, path)


def draw_precision_recall(curves: Curves, path: Path) -> None:
    """Draw precision over recall, the mean over all classes at every tIoU, into a PNG."""
    figure, axes = pyplot().subplots(figsize=(WIDTH, 4.4), layout="constrained")
    for number, (tiou, curve) in enumerate(
        zip(curves.tious, curves.precision.mean(axis=1), strict=True)
    ):
        colour = pyplot().get_cmap("viridis")(0.75 * number / max(1, len(curves.tious) - 1))
        axes.plot(RECALLS, curve, label=f"tIoU {tiou:g}", color=colour, linewidth=1.8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.03))
    _finish(axes)
    save_figure(figure, path)


def draw_class_curves(
    curves: Curves, tiou: float, precisions: Mapping[str, Mapping[float, float]], path: Path
) -> None:
    """Draw precision over recall, a panel for each class at one tIoU, into a PNG.

    Args:
        tiou: one of the curves'.
        precisions: average precision by class and tIoU; of more than `MOST_PANELS` classes those
            with the lowest are drawn.
    """
    order = sorted(curves.labels, key=lambda label: precisions[label][tiou])[:MOST_PANELS]
    columns = min(4, len(order))
    rows = -(-len(order) // columns)
    figure, grid = pyplot().subplots(
        rows,
        columns,
        figsize=(WIDTH, 0.5 + 1.9 * rows),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    at = curves.precision[curves.tious.index(tiou)]
    for axes, label in zip(grid.flat, order, strict=False):
        number = curves.labels.index(label)
        axes.fill_between(RECALLS, at[number], color=APART[0], alpha=0.18, linewidth=0)
        axes.plot(RECALLS, at[number], color=APART[0], linewidth=1.6)
        name = label if len(label) <= 22 else f"{label[:21]}…"
        average, count = precisions[label][tiou], curves.truths[number]
        axes.set_title(f"{name}\nAP {average:.3f}, {count} actions", fontsize=9, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        _finish(axes)
    for place in range(len(order), grid.size):
        grid.flat[place].set_axis_off()
        grid.flat[place - columns].tick_params(labelbottom=True)  # there is no panel below
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    save_figure(figure, path)


def draw_rows(
    averages: Mapping[str, Estimate],
    differences: Mapping[str, Mapping[float, Estimate]],
    reference: str | None,
    path: Path,
) -> None:
    """Draw rows of a study into a PNG: averages, and differences to one row by tIoU.

    Args:
        averages: average mAP by row; `differences`: to the row `reference`, {row: {tIoU: mAP}}.
    """
    height = 1.3 + 0.3 * len(averages)
    sides = (2, 3) if differences else (1, 0.001)
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(WIDTH, height), width_ratios=sides, layout="constrained", sharey=True
    )
    names = list(averages)
    for place, (mean, low, high) in enumerate(averages.values()):
        # Where rare classes drop out of resamples, all of them may lie on one side of the mean.
        reach = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
        left.errorbar(mean, place, xerr=reach, fmt="o", capsize=3, color=APART[0])
    left.set(title="average mAP", xlabel="with its 95 % interval", yticks=range(len(names)))
    left.set_yticklabels(names, fontsize=9, parse_math=False)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.grid(axis="x", alpha=0.3)
    tious = list(next(iter(differences.values()), ()))
    for place, name in enumerate(names):
        for column, one in enumerate(differences.get(name, {}).values()):
            sure = one.low > 0 or one.high < 0
            shade = pyplot().get_cmap("RdBu")(0.5 + 0.25 * max(-1, min(1, one.mean / STRIKING)))
            right.add_patch(pyplot().Rectangle((column - 0.5, place - 0.5), 1, 1, color=shade))
            right.text(
                column,
                place,
                f"{one.mean:+.3f}".replace("0.", ".", 1),
                ha="center",
                va="center",
                fontsize=9,
                weight="bold" if sure else "normal",
                color="black",
            )
    if differences:
        right.set(title=f"mAP at each tIoU − {reference}", xlim=(-0.5, len(tious) - 0.5))
        right.set_xticks(range(len(tious)), [f"{tiou:g}" for tiou in tious])
        right.set_xlabel("bold: the 95 % interval does not hold 0")
        right.tick_params(axis="y", left=False)
    else:
        right.set_axis_off()
    save_figure(figure, path)


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
    names = list(next(iter(examples.values()), ()))
    tall = min(12.0, max(3.0, 0.17 * min(len(names), MOST_NAMES)))
    figure = pyplot().figure(figsize=(WIDTH, tall + 3.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(tall, 3.6))
    left, middle, right = (
        figure.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1])
    )
    height = 0.8 / max(1, len(examples))
    for number, (subset, counts) in enumerate(examples.items()):
        places = [place + number * height for place in range(len(names))]
        left.barh(places, [counts[name] for name in names], height, label=subset)
    left.set(xlabel="actions", title="classes", yticks=range(len(names)), yticklabels=names)
    left.tick_params(axis="y", labelsize=9)
    if len(names) > MOST_NAMES:
        left.set(yticks=[])
    left.invert_yaxis()
    longest = max([window, *lengths])
    edges = [0.25 * 2 ** (0.25 * step) for step in range(4 * math.ceil(math.log2(8 * longest)))]
    # Lengths below the first edge are drawn at it, so that none is missing.
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
    middle.margins(y=0.15)  # room for the numbers of the levels
    # Below all panels, where no bar can be.
    figure.legend(loc="outside lower center", ncol=1 + len(examples), fontsize="small")
    rates = [fps for _, fps in videos]
    right.scatter([duration for duration, _ in videos], rates, s=12, alpha=0.5)
    right.set(xlabel="duration in s", ylabel="frames per second", title="videos")
    right.set_ylim(0, 1.1 * max([1.0, *rates]))
    save_figure(figure, path)


def draw_confusion(counts: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draw how often each class (rows) was taken for which (columns) into a PNG.

    Args:
        counts: examples [K, K]; rows are shown as shares.
    """
    side = min(12.0, 3 + 0.3 * len(names))
    figure, axes = pyplot().subplots(figsize=(side + 1, side), layout="constrained")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(picture, label="share of the true class")
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="found", ylabel="true")
    save_figure(figure, path)


def scores_table(result: MeanAP) -> str:
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


def _finish(axes: Any) -> None:
    """Give a panel a faint grid, no frame and, of several lines, a legend."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=9, framealpha=0.7)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG with 100 pixels an inch, aside first, and close it."""
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=100, format="png")
    pyplot().close(figure)
