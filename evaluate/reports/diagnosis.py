"""Pictures and a table of diagnoses: several detectors on the same axes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from evaluate.diagnosis.diagnosis import Diagnosis
from evaluate.diagnosis.false_positives import KINDS, SLICES
from evaluate.diagnosis.sensitivity import Bin
from evaluate.reports.figures import MOST_NAMES, save_figure

Diagnoses = Mapping[str, Diagnosis]
"""By the detector's name, in the order of drawing; all of the same truth."""

HARDEST = 5  # classes in the text; all are in the JSON file
WIDTH = 8.0  # inches, 800 pixels

# Distinguishable by shape and hatching without colours; the colours are Okabe and Ito's.
DETECTORS = (
    *(("#0072b2", "o", "-", ""), ("#d55e00", "s", "--", "//"), ("#000000", "^", ":", "..")),
    *(("#009e73", "D", "-.", "xx"), ("#cc79a7", "v", "-", "--"), ("#e69f00", "P", "--", "++")),
)
MOST_DETECTORS = len(DETECTORS)
CAUSES = {
    "true": ("#e0e0e0", ""),
    "duplicate": ("#56b4e9", "//"),
    "wrong label": ("#d55e00", ""),
    "localisation": ("#b9a800", ".."),
    "confusion": ("#cc79a7", "xx"),
    "background": ("#009e73", "--"),
    "never found": ("#ffffff", ""),
}


def draw_diagnosis(diagnoses: Diagnoses, out: Path) -> None:
    """Draw all figures into `out`: five PNGs, 800 pixels wide, of at most `MOST_DETECTORS`."""
    draw_costs(diagnoses, out / "costs.png")
    draw_profiles(diagnoses, out / "profiles.png")
    draw_sensitivity(diagnoses, out / "sensitivity.png")
    draw_classes(diagnoses, out / "classes.png")
    if any(diagnosis.reliability for diagnosis in diagnoses.values()):
        draw_reliability(diagnoses, out / "reliability.png")
    else:
        (out / "reliability.png").unlink(missing_ok=True)  # of an earlier diagnosis


def draw_costs(diagnoses: Diagnoses, path: Path) -> None:
    """Draw what is lacking to an mAP of 1, by cause, and what mending each kind alone brings."""
    height = 1.2 + 0.45 * len(diagnoses)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(WIDTH, height + 3.4), height_ratios=(height, 3.4), layout="constrained"
    )
    for place, diagnosis in enumerate(diagnoses.values()):
        parts = {**diagnosis.cost.share, "never found": diagnosis.cost.missed}
        begin = 0.0
        for cause, part in parts.items():
            above.barh(place, part, left=begin, **_cause(cause), label=cause if not place else None)
            begin += part
    tiou = next(iter(diagnoses.values())).tiou
    names = [f"{name}\nmAP {each.mean_ap:.3f}" for name, each in diagnoses.items()]
    above.set(yticks=range(len(names)), yticklabels=names, xlabel="mAP lacking to 1, by cause")
    above.set_title(f"Where the mAP at tIoU {tiou:g} is lost")
    above.invert_yaxis()
    figure.legend(
        *above.get_legend_handles_labels(), loc="outside upper center", ncol=6, fontsize=9
    )
    wide = 0.8 / len(diagnoses)
    label = {"ha": "center", "va": "bottom", "fontsize": 9}
    if len(diagnoses) > 2:  # no room side by side
        label |= {"rotation": 90, "textcoords": "offset points", "xytext": (0, 3)}
    for number, (name, diagnosis) in enumerate(diagnoses.items()):
        gains = [*diagnosis.cost.alone.values(), diagnosis.cost.every]
        colour, _, _, hatch = DETECTORS[number]
        places = [place - 0.4 + (number + 0.5) * wide for place in range(len(gains))]
        below.bar(
            places, gains, 0.92 * wide, color=colour, hatch=hatch, edgecolor="white", label=name
        )
        for x, gain in zip(places, gains, strict=True):
            below.annotate(f"{gain:.3f}".lstrip("0"), (x, gain), **label)
    below.set(xticks=range(len(KINDS) + 1), xticklabels=[*KINDS, "all kinds"], ylabel="mAP gained")
    below.set_title("What removing one kind of false positives would gain")
    below.margins(y=0.2)
    below.legend()
    save_figure(figure, path)


def draw_profiles(diagnoses: Diagnoses, path: Path) -> None:
    """Draw what the best predictions are, in slices as long as there are actions."""
    figure, rows = plt.subplots(
        len(diagnoses),
        1,
        figsize=(WIDTH, 1.1 + 2.2 * len(diagnoses)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, diagnosis) in zip(rows[:, 0], diagnoses.items(), strict=True):
        totals = [max(1, sum(column)) for column in zip(*diagnosis.top.values(), strict=True)]
        begin = [0.0] * SLICES
        for cause, counts in diagnosis.top.items():
            parts = [100 * count / total for count, total in zip(counts, totals, strict=True)]
            axes.bar(range(1, SLICES + 1), parts, 0.8, bottom=begin, **_cause(cause), label=cause)
            begin = [low + part for low, part in zip(begin, parts, strict=True)]
        axes.set(ylabel="% of predictions", ylim=(0, 100), title=name)
    rows[-1, 0].set(xticks=range(1, SLICES + 1), xticklabels=[_slice(n) for n in range(SLICES)])
    rows[-1, 0].set_xlabel(
        "predictions by rank of score; G is the number of actions of their class"
    )
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncol=6, fontsize=9)
    save_figure(figure, path)


def draw_sensitivity(diagnoses: Diagnoses, path: Path) -> None:
    """Draw false negative rate and normalised mAP over what actions are like."""
    one = next(iter(diagnoses.values()))
    columns = len(one.characteristics)
    figure, grid = plt.subplots(
        2, columns, figsize=(WIDTH, 6), sharey="row", squeeze=False, layout="constrained"
    )
    for number, (name, diagnosis) in enumerate(diagnoses.items()):
        colour, marker, line, _ = DETECTORS[number]
        style = {"color": colour, "marker": marker, "linestyle": line, "clip_on": False}
        for column, characteristic in enumerate(diagnosis.characteristics.values()):
            above, below = grid[:, column]
            bins = characteristic.bins
            above.plot([100 * each.missed for each in bins], **style, label=name)
            below.plot([each.mean_ap_n for each in bins], **style)
            for axes, level in ((above, 100 * diagnosis.missed), (below, diagnosis.mean_ap_n)):
                axes.axhline(level, color=colour, linestyle=line, linewidth=0.8, alpha=0.6)
    for column, (name, characteristic) in enumerate(one.characteristics.items()):
        above, below = grid[:, column]
        names = [format_bin(each) for each in characteristic.bins]
        for axes in (above, below):
            axes.set(xticks=range(len(names)), xlim=(-0.4, len(names) - 0.6))
            axes.grid(axis="y", alpha=0.3)
        above.set(title=name, xticklabels=[])
        below.set_xticklabels(names, rotation=35, ha="right", rotation_mode="anchor")
        below.set_xlabel(characteristic.unit)
    grid[0, 0].set(ylabel="actions missed, %")
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set(ylabel="normalised mAP")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=f"horizontal lines: all {one.truths} actions",
        loc="outside upper center",
        ncol=len(labels),
    )
    save_figure(figure, path)


def draw_classes(diagnoses: Diagnoses, path: Path) -> None:
    """Draw average precision per class, the hardest of the first detector on top."""
    one = next(iter(diagnoses.values()))
    order = sorted(one.classes, key=lambda label: one.classes[label].average_precision)
    shown = order[:MOST_NAMES]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.6 + 0.24 * len(shown)), layout="constrained")
    for number, (name, diagnosis) in enumerate(diagnoses.items()):
        colour, marker, _, _ = DETECTORS[number]
        values = [diagnosis.classes[label].average_precision for label in shown]
        axes.plot(
            values,
            range(len(shown)),
            color=colour,
            marker=marker,
            linestyle="none",
            markersize=7,
            markerfacecolor="none" if number else colour,
            label=f"{name}, mAP {diagnosis.mean_ap:.3f}",
        )
    names = [f"{label} ({one.classes[label].truths})" for label in shown]
    axes.set(yticks=range(len(shown)), yticklabels=names, xlim=(-0.02, 1.02))
    axes.set_xlabel(f"average precision at tIoU {one.tiou:g}")
    hidden = (
        f"; the {MOST_NAMES} hardest of {len(order)} classes" if len(order) > len(shown) else ""
    )
    axes.set_title(f"Classes, with their number of actions{hidden}")
    axes.set_ylim(len(shown) - 0.5, -0.5)  # the first on top
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncol=3)
    save_figure(figure, path)


def draw_reliability(diagnoses: Diagnoses, path: Path) -> None:
    """Draw how many predictions of a score are true, and how many have it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.6), layout="constrained")
    left.plot([0, 1], [0, 1], color="grey", linewidth=1, label="perfectly calibrated")
    for number, (name, diagnosis) in enumerate(diagnoses.items()):
        if diagnosis.reliability is None:
            continue
        colour, marker, line, _ = DETECTORS[number]
        style = {"color": colour, "marker": marker, "linestyle": line, "clip_on": False}
        found = diagnosis.reliability
        left.plot(found.score, found.true, **style, label=f"{name}, error {found.error:.3f}")
        right.plot(found.score, found.count, **style)
    tiou = next(iter(diagnoses.values())).tiou
    left.set(xlabel="score", ylabel=f"share that is true at tIoU {tiou:g}")
    left.set(xlim=(0, 1), ylim=(0, 1), title="Below the grey line: too sure")
    right.set(xlabel="score", ylabel="predictions", xlim=(0, 1), yscale="log")
    right.set(title="How many predictions have such scores")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncol=2)
    save_figure(figure, path)


def _cause(cause: str) -> dict[str, Any]:
    colour, hatch = CAUSES[cause]
    return {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}


def _slice(number: int) -> str:
    return "0–1 G" if not number else f"{number}–{number + 1} G"


def diagnosis_table(diagnoses: Diagnoses) -> str:
    """Return detectors side by side as aligned text."""
    all_of = list(diagnoses.values())
    one = all_of[0]
    rows: list[tuple[str, list[str]]] = [
        (f"at tIoU {one.tiou:g}", list(diagnoses)),
        ("mAP", [f"{d.mean_ap:.4f}" for d in all_of]),
        ("gained without false positives", []),
        *[(f"  {k}", [f"+{d.cost.alone[k]:.4f}" for d in all_of]) for k in KINDS],
        ("  all of them", [f"+{d.cost.every:.4f}" for d in all_of]),
        ("the best predictions, as many as actions", []),
        *[(f"  {k}", [_share(d, k) for d in all_of]) for k in ("true", *KINDS)],
        ("actions missed | normalised mAP", [_both(d.missed, d.mean_ap_n) for d in all_of]),
    ]
    for name, characteristic in one.characteristics.items():
        rows.append((f"  by {name} ({characteristic.unit})", []))
        for place, each in enumerate(characteristic.bins):
            bins = [d.characteristics[name].bins[place] for d in all_of]
            label = f"    {format_bin(each)}"
            rows.append((label, [_both(b.missed, b.mean_ap_n) for b in bins]))
    rows.append(("calibration error of scores", [_error(d) for d in all_of]))
    rows.append(("average precision, hardest classes", []))
    hardest = sorted(one.classes, key=lambda label: one.classes[label].average_precision)[:HARDEST]
    for label in hardest:
        cells = [f"{d.classes[label].average_precision:.4f}" for d in all_of]
        rows.append((f"  {label}", cells))
    width = max(len(label) for label, _ in rows)
    cell = max(len(text) for _, cells in rows for text in cells)
    lines = [
        f"{label:<{width}}" + "".join(f"  {c:>{cell}}" for c in cells) for label, cells in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def format_bin(each: Bin) -> str:
    """Return a bin's values as people read them: 2.5–4.1, or one number."""
    low, high = (
        f"{value:.0f}" if value >= 100 else f"{value:.2g}" for value in (each.low, each.high)
    )
    return low if low == high else f"{low}–{high}"


def _share(diagnosis: Diagnosis, kind: str) -> str:
    first = sum(numbers[0] for numbers in diagnosis.top.values())
    return f"{diagnosis.top[kind][0] / max(1, first):.1%}"


def _both(missed: float, mean_ap_n: float) -> str:
    return f"{missed:.1%} | {mean_ap_n:.3f}"


def _error(diagnosis: Diagnosis) -> str:
    return f"{diagnosis.reliability.error:.4f}" if diagnosis.reliability else "none"
