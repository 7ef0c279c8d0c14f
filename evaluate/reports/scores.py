"""The results of an evaluation: its files, and the report with scores, curves and classes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.atomic import write_text
from evaluate.annotations import Detection
from evaluate.files.predictions import write_predictions
from evaluate.mean_ap import MeanAP
from evaluate.metrics.precision_recall import precision_recall
from evaluate.metrics.scored import ScoredDetections
from evaluate.reports.figures import (
    MOST_PANELS,
    draw_class_curves,
    draw_precision_recall,
    draw_tious,
)
from evaluate.reports.page import (
    REPORT,
    TABLES,
    Fact,
    Figure,
    Report,
    Section,
    Table,
    write_report,
)

TIOUS = "tious.png"
CURVES = "precision_recall.png"
CLASSES = "precision_recall_classes.png"
PICTURES = (TIOUS, CURVES, CLASSES)
ABOUT_TIOUS = (
    "mAP, the area under precision over recall, averaged over classes, at each tIoU: the overlap "
    "with an action (shared time divided by the time either takes) from which on a detection "
    "counts as right. It falls to the right, where boundaries must be more exact."
)
ABOUT_CURVES = (
    "Precision over recall, the mean over classes. Going down the list of detections, best score "
    "first: recall is the share of all actions that are found by then, precision the share of "
    "detections that are right. A perfect detector stays at the top until recall 1."
)


def write_results(out: Path, scored: ScoredDetections) -> None:
    """Write predictions.json and metrics.json into a folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions.json", scored.detections)
    skipped = {"skipped_videos": dict(scored.skipped)}
    metrics: dict[str, Any] = scored.result.to_dict() | skipped
    if scored.streams:
        metrics["streams"] = {name: alone.to_dict() for name, alone in scored.streams.items()}
    write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")


def write_unscored(out: Path, detections: Mapping[str, Sequence[Detection]]) -> None:
    """Write predictions.json, and remove what an earlier evaluation wrote of scores."""
    write_predictions(out / "predictions.json", detections)
    for stale in ("metrics.json", REPORT, TABLES, *PICTURES):
        (out / stale).unlink(missing_ok=True)


def write_scores_report(
    out: Path, title: str, scored: ScoredDetections, more: Sequence[Section] = ()
) -> None:
    """Draw the figures of an evaluation, and write report.html and report.json.

    Args:
        more: sections after the scores.
    """
    truth, found, skipped = scored.truth, scored.detections, len(scored.skipped)
    result, streams = scored.result, scored.streams
    curves = precision_recall(truth, found, list(result.per_tiou))
    middle = min(curves.tious, key=lambda tiou: abs(tiou - 0.5))
    draw_tious(result, out / TIOUS, streams)
    draw_precision_recall(curves, out / CURVES)
    draw_class_curves(curves, middle, result.per_class, out / CLASSES)
    actions = sum(curves.truths)
    detections = sum(map(len, found.values()))
    facts = [Fact("average mAP", result.average)]
    facts += [Fact(f"mAP at tIoU {tiou:g}", value) for tiou, value in result.per_tiou.items()][:6]
    facts += [Fact("videos", len(truth)), Fact("actions", actions), Fact("detections", detections)]
    tious = ", ".join(f"{tiou:g}" for tiou in result.per_tiou)
    report = Report(
        kind="Evaluation",
        title=title,
        summary=(
            f"Average mAP {result.average:.3f} over tIoU {tious}: {detections:,} detections in "
            f"{len(truth):,} videos, compared with {actions:,} annotated actions of "
            f"{len(curves.labels):,} classes. 1 is perfect."
        ),
        facts=facts,
        warnings=[f"{skipped} videos could not be read and do not count."] if skipped else [],
        sections=[
            Section(
                "How exact the boundaries are",
                figures=[Figure(TIOUS, ABOUT_TIOUS)],
                tables=[_streams(result, streams)] if streams else [],
            ),
            Section(
                "How many are found, and how many are right", figures=[Figure(CURVES, ABOUT_CURVES)]
            ),
            Section(
                "Classes",
                figures=[Figure(CLASSES, _about_classes(middle, len(curves.labels)))],
                tables=[_classes(result, dict(zip(curves.labels, curves.truths, strict=True)))],
            ),
            Section("Recall", tables=[_recall(result)]),
            *more,
        ],
    )
    write_report(report, out)


def _about_classes(tiou: float, classes: int) -> str:
    which = (
        f"The {MOST_PANELS} of {classes} classes with the lowest average precision"
        if classes > MOST_PANELS
        else "Every class, the lowest average precision (AP) first"
    )
    return f"{which}: precision over recall at tIoU {tiou:g}. AP is the shaded area."


def _classes(result: MeanAP, truths: Mapping[str, int]) -> Table:
    """Return average precision per class and tIoU; all classes last."""
    tious = list(result.per_tiou)
    rows: list[tuple[str | int | float, ...]] = []
    for name, values in result.per_class.items():
        numbers = [values[tiou] for tiou in tious]
        rows.append((name, truths[name], *numbers, sum(numbers) / len(numbers)))
    rows.append(("all classes", sum(truths.values()), *result.per_tiou.values(), result.average))
    columns = ("class", "actions", *(f"tIoU {tiou:g}" for tiou in tious), "average")
    title = "Average precision of each class"
    return Table("average precision", columns, rows, title, strong=[len(rows) - 1])


def _streams(result: MeanAP, streams: Mapping[str, MeanAP]) -> Table:
    every = {"both streams": result} | {f"{name} alone": one for name, one in streams.items()}
    rows: list[list[str | float]] = [
        [name, *one.per_tiou.values(), one.average] for name, one in every.items()
    ]
    columns = ("mAP", *(f"tIoU {tiou:g}" for tiou in result.per_tiou), "average")
    return Table("streams", columns, rows, "Both directions and each alone")


def _recall(result: MeanAP) -> Table:
    tious = list(result.per_tiou)
    ks = sorted({k for _, k in result.recall})
    rows: list[list[str | float]] = [
        [f"{k}x", *(result.recall[tiou, k] for tiou in tious)] for k in ks
    ]
    columns = ("recall@kx", *(f"tIoU {tiou:g}" for tiou in tious))
    note = (
        "The share of actions that are covered by one of the k·n best detections of their video "
        "and class, n being the number of actions there; averaged over classes."
    )
    return Table("recall", columns, rows, note=note)
