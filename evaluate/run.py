"""Score a checkpoint on videos, or a predictions file on annotations.

    python evaluate/run.py --checkpoint runs/demo/forward/last.pt [--config FILE] [--out FOLDER]
    python evaluate/run.py --checkpoint FILE --cache URL
    python evaluate/run.py --predictions FILE --annotations FILE --subset test --tious 0.5 0.75
    python evaluate/run.py --predictions FORWARD.json REVERSED.json …     # both together

A checkpoint brings its config; --config is laid over it (an OpenTAD checkpoint needs one), and
dotted overrides change single settings. With --predictions, --config supplies blocked videos, class
list and tIoUs; several files are joined and suppressed anew. Prints a table; writes report.html,
with its figures and, as report.json, its tables, metrics.json and predictions.json into --out, for
a detector of two streams each stream's, too.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from cache.store import open_cache
from configs import cli
from configs.atomic import write_text
from configs.loader import dump, load
from evaluate.annotations import (
    Detection,
    Segment,
    read_annotations,
    select,
)
from evaluate.files.predictions import cannot_score, read_predictions, write_predictions
from evaluate.mean_ap import MeanAP, mean_average_precision
from evaluate.nms import NmsConfig, suppress
from evaluate.reports.figures import table
from evaluate.reports.launches import FINISHED, LAUNCHES, Launch, new_launch
from evaluate.reports.page import REPORT, TABLES, Section
from evaluate.reports.scores import PICTURES, leave_scores
from evaluate.reports.sections import (
    activations_section,
    files_section,
    left_out_section,
    repeat_section,
    report_of,
    settings_section,
    time_section,
)
from evaluate.reports.training import leave_report
from extract.activations.stored import Counts
from train.config import Experiment
from train.data.cached import evaluation_spans, up_to_date
from train.data.videos import load_annotations, load_items, skipped_warning
from train.detector.evaluation import as_detected, detect_all, score, window_loader
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.sources import config_of, read_source
from train.engine.loop import START_UP
from train.engine.session import PASSES, WAIT_FOR_OTHERS, WAIT_FOR_PASSES, device_names, with_cache
from train.engine.stopwatch import Stopwatch

Predictions = dict[str, list[Detection]]
Truth = dict[str, tuple[Segment, ...]]
THUMOS_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, help="detector to run over the test videos")
    parser.add_argument("--config", type=Path, help="use this config, not the checkpoint's own")
    parser.add_argument(
        "--predictions", type=Path, nargs="+", help="score this file, or several files joined"
    )
    parser.add_argument("--annotations", type=Path, help="truth; default: the config's")
    parser.add_argument("--subset", help="which videos; default: the config's test subset")
    parser.add_argument("--tious", type=float, nargs="+", help="tIoU thresholds")
    parser.add_argument("--out", type=Path, help="folder of results; default: beside the input")
    parser.add_argument("--cache", help="store of activations to read from and to add to")
    args, overrides = parser.parse_known_args()
    if bool(args.checkpoint) == bool(args.predictions):
        parser.error("give either --checkpoint or --predictions")
    if args.predictions and not args.config and not (args.annotations and args.subset):
        parser.error("--predictions needs --annotations and --subset, or --config")
    if args.predictions and not args.config and overrides:
        parser.error(f"without --config there is nothing to set: {' '.join(overrides)}")
    if args.cache and not args.checkpoint:
        parser.error("--cache goes with --checkpoint")
    overrides = with_cache(overrides, args.cache)
    if args.annotations:
        overrides.append(f"--data.annotations={args.annotations}")
    if args.tious:
        overrides.append(f"--evaluation.tious={args.tious}")
    if args.predictions:
        score_file(args, overrides)
    else:
        score_checkpoint(args, overrides)


def score_file(args: argparse.Namespace, overrides: list[str]) -> None:
    """Score a predictions file against an annotation file."""
    files = [read_predictions(path) for path in args.predictions]
    tious, subset, nms = args.tious or THUMOS_TIOUS, args.subset, NmsConfig()
    if args.config:
        config = load(Experiment, args.config, overrides)
        annotations = load_annotations(config.data)
        tious, nms = config.evaluation.tious, config.evaluation.nms
        subset = subset or config.data.test_subset
    else:
        if not args.annotations.exists():
            raise ValueError(f"--annotations: there is no file or folder {args.annotations}")
        annotations = read_annotations(args.annotations)
    truth = {video.name: video.segments for video in select(annotations, subset)}
    found = files[0] if len(files) == 1 else join(files, nms)
    for problem in cannot_score(found, truth, annotations.classes, subset):
        print(f"warning: {problem}")
    stems = "+".join(path.stem for path in args.predictions)
    out = args.out or args.predictions[0].parent / f"{stems}-{subset}"
    watch = Stopwatch("scoring")
    launch = new_launch()
    result = mean_average_precision(truth, found, tious)
    write_results(out, found, result, {})
    launch = replace(launch, outcome=FINISHED, seconds=watch.seconds())
    title = f"{' + '.join(map(str, args.predictions))} on '{subset}'"
    leave_scores(out, title, truth, found, result, {}, 0, _more(out, launch))
    print(f"report: {out / REPORT}")


def join(files: list[Predictions], nms: NmsConfig) -> Predictions:
    """Fuse several files late: all their segments, of which overlapping ones give way again."""
    fused: Predictions = {}
    for video in dict.fromkeys(name for found in files for name in found):
        every = [d for found in files for d in found.get(video, [])]
        labels = sorted({d.label for d in every})
        segments, scores, classes = suppress(
            np.array([(d.start_s, d.end_s) for d in every], np.float32).reshape(-1, 2),
            np.array([d.score for d in every], np.float32),
            np.array([labels.index(d.label) for d in every], np.int64),
            nms,
        )
        fused[video] = [
            Detection(labels[label], float(start), float(end), float(score))
            for (start, end), score, label in zip(segments, scores, classes, strict=True)
        ]
    return fused


def score_checkpoint(args: argparse.Namespace, overrides: list[str]) -> None:
    """Detect in all videos of a subset; write the detections, then their score."""
    watch = Stopwatch(START_UP)
    saved = read_source(args.checkpoint, args.config, overrides)
    config = config_of(args.config, saved, str(args.checkpoint), overrides)
    if len(config.directions) != len(saved.config.directions):
        raise ValueError(
            f"{args.checkpoint} has {len(saved.config.directions)} stream(s), but fusion.method "
            f"{config.fusion.method} needs {len(config.directions)}; join streams with "
            "train/heads.py, or set --fusion.method none"
        )
    if args.subset:
        config = replace(config, data=replace(config.data, test_subset=args.subset))
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=WAIT_FOR_PASSES if args.cache else WAIT_FOR_OTHERS)
        ],
    )
    launch = new_launch(accelerator.num_processes, device_names(accelerator))
    annotations = load_annotations(config.data)
    imported = config.backbone.imported
    url = config.cache.url if imported else args.cache
    if imported and not url:
        raise ValueError(f"--cache: give the store that the features '{imported}' are in")
    store = open_cache(url) if url else None
    subset = config.data.test_subset
    items = load_items(config.data, annotations, subset, accelerator, store, imported)
    if items.skipped and accelerator.is_main_process:
        print(skipped_warning(items.skipped, len(items) + len(items.skipped)))
    detector = Detector.restore(saved._replace(config=config), args.checkpoint)
    strangers = {s.label for item in items for s in item.truth} - set(detector.classes)
    if strangers and not config.data.class_agnostic:
        raise ValueError(
            f"{args.checkpoint} knows {', '.join(detector.classes)}, but the annotations also "
            f"have {', '.join(sorted(strangers))}: it was trained on another dataset"
        )
    name = f"{args.checkpoint.stem}-{config.data.test_subset}"
    out = args.out or args.checkpoint.parent / "evaluation" / name
    out.mkdir(parents=True, exist_ok=True)  # now, not after hours of detection
    detector = detector.to(accelerator.device)
    began = time.monotonic()
    counts, cached = Counts(), None
    if store is not None:
        activations = activations_of(detector, store, [args.checkpoint])
        overlap = config.sampling.test_overlap
        spans = [evaluation_spans(items, overlap, config, d) for d in config.directions]
        with watch.stage(PASSES):
            cached = up_to_date(
                activations, spans, "features", [items], config, accelerator, counts
            )
    windows = window_loader(items, config.sampling.test_overlap, config, accelerator, cached)
    with watch.stage("detecting"):
        answers, skipped = detect_all(
            detector, items, windows, accelerator, "detecting", of_streams=len(detector.streams) > 1
        )
    if not accelerator.is_main_process:
        return
    if skipped:
        print(skipped_warning(skipped, len(items)))
    minutes = sum(item.duration_s for item in items) / 60
    print(f"{len(items)} videos ({minutes:.1f} min) in {time.monotonic() - began:.1f} s")
    found = answers.pop(detector.answer)
    for name, others in answers.items():
        write_predictions(out / f"predictions-{name}.json", others)
    left_out = items.skipped | skipped
    if any(item.truth for item in items):
        with watch.stage("scoring"):
            streams = {name: score(items, others, detector) for name, others in answers.items()}
            result = score(items, found, detector)
            write_results(out, found, result, left_out, streams)
        launch = replace(
            launch,
            outcome=FINISHED,
            seconds=watch.seconds(),
            activations={"detecting": [counts.hits, counts.partial, counts.full]} if store else {},
        )
        truth = as_detected({item.name: item.truth for item in items if item.name in found}, config)
        title = f"{args.checkpoint} on '{subset}'"
        more = _more(out, launch, dump(config), left_out, args.checkpoint.parent)
        leave_scores(out, title, truth, found, result, streams, len(left_out), more)
        print(f"report: {out / REPORT}")
        _tell_the_run(args.checkpoint.parent, out)
    else:
        write_predictions(out / "predictions.json", found)
        for stale in ("metrics.json", REPORT, TABLES, *PICTURES):
            (out / stale).unlink(missing_ok=True)
        print(f"no annotations to score against; detections in {out / 'predictions.json'}")


def write_results(
    out: Path,
    found: Predictions,
    result: MeanAP,
    skipped: dict[str, str],
    streams: Mapping[str, MeanAP] = MappingProxyType({}),
) -> None:
    """Print the table and leave predictions and metrics in `out`.

    Args:
        skipped: videos that could not be read and do not count, with causes.
        streams: what a fused detector's single streams reach.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions.json", found)
    metrics: dict[str, Any] = result.as_dict() | {"skipped_videos": skipped}
    if streams:
        metrics["streams"] = {name: alone.as_dict() for name, alone in streams.items()}
    write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    print(table(result))
    for name, alone in streams.items():
        print(f"{name} alone: average mAP {alone.average:.4f}")
    print(f"average mAP {result.average:.4f}; details in {out}")


def _more(
    out: Path,
    launch: Launch,
    config: str = "",
    skipped: Mapping[str, str] = MappingProxyType({}),
    run: Path | None = None,
) -> list[Section]:
    """Return what a report has besides scores.

    Args:
        config: the resolved experiment, if there is one.
        skipped: videos that do not count, with causes.
        run: the folder of the training run, if it is known.
    """
    report = report_of(run, out) if run else None
    above = [(report, "the report of the training run")] if report else []
    sections = [
        left_out_section(skipped),
        time_section([launch]),
        activations_section([launch]),
        repeat_section([launch]),
        settings_section(config) if config else None,
        files_section(out, above),
    ]
    return [section for section in sections if section]


def _tell_the_run(run: Path, out: Path) -> None:
    """Let the report of a training run, if there is one, show a score that is in its folder."""
    if (run / LAUNCHES).exists() and out.resolve().is_relative_to(run.resolve()):
        try:
            leave_report(run)
        except (OSError, ValueError) as error:
            print(f"warning: {run / REPORT} does not show this score: {error}")


if __name__ == "__main__":
    cli.run(main)
