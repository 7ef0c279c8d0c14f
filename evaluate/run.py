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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from configs import cli
from configs.loader import dump, load
from evaluate.annotations import read_annotations, select_videos
from evaluate.files.predictions import (
    join_predictions,
    read_predictions,
    scoring_problems,
    write_predictions,
)
from evaluate.mean_ap import MeanAP, mean_average_precision
from evaluate.nms import NmsConfig
from evaluate.reports.figures import scores_table
from evaluate.reports.launches import FINISHED, LAUNCHES, new_launch
from evaluate.reports.page import REPORT, TABLES
from evaluate.reports.scores import PICTURES, write_results, write_scores_report
from evaluate.reports.sections import evaluation_sections
from evaluate.reports.training import write_training_report
from train.config import Experiment
from train.data.videos import format_skipped, load_annotations
from train.detector.evaluation import evaluate_checkpoint
from train.engine.session import with_cache
from train.engine.stopwatch import Stopwatch

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
        score_files(
            args.predictions,
            args.config,
            overrides,
            args.annotations,
            args.subset,
            args.tious or THUMOS_TIOUS,
            args.out,
        )
    else:
        score_checkpoint(args.checkpoint, args.config, overrides, args.subset, args.cache, args.out)


def score_files(
    paths: Sequence[Path],
    config: Path | None,
    overrides: list[str],
    annotation_file: Path | None,
    subset: str | None,
    tious: Sequence[float],
    out: Path | None,
) -> None:
    """Score predictions files, joined if there are several, against an annotation file.

    Args:
        annotation_file, subset: needed where there is no config, which else brings both.
        tious: thresholds where there is no config.
    """
    files = [read_predictions(path) for path in paths]
    nms = NmsConfig()
    if config:
        experiment = load(Experiment, config, overrides)
        annotations = load_annotations(experiment.data)
        tious, nms = experiment.evaluation.tious, experiment.evaluation.nms
        subset = subset or experiment.data.test_subset
    else:
        assert annotation_file is not None and subset is not None
        if not annotation_file.exists():
            raise ValueError(f"--annotations: there is no file or folder {annotation_file}")
        annotations = read_annotations(annotation_file)
    truth = {video.name: video.segments for video in select_videos(annotations, subset)}
    found = files[0] if len(files) == 1 else join_predictions(files, nms)
    for problem in scoring_problems(found, truth, annotations.classes, subset):
        print(f"warning: {problem}")
    out = out or paths[0].parent / f"{'+'.join(path.stem for path in paths)}-{subset}"
    watch = Stopwatch("scoring")
    launch = new_launch()
    result = mean_average_precision(truth, found, tious)
    write_results(out, found, result, {}, {})
    print_scores(result, {}, out)
    launch = replace(launch, outcome=FINISHED, seconds=watch.seconds())
    title = f"{' + '.join(map(str, paths))} on '{subset}'"
    write_scores_report(out, title, truth, found, result, {}, 0, evaluation_sections(out, launch))
    print(f"report: {out / REPORT}")


def score_checkpoint(
    checkpoint: Path,
    config: Path | None,
    overrides: list[str],
    subset: str | None,
    cache: str | None,
    out: Path | None,
) -> None:
    """Detect in all videos of a subset; write the detections, then their score."""
    found = evaluate_checkpoint(checkpoint, config, overrides, subset, cache, out)
    if found is None:
        return
    out, videos = found.out, len(found.items)
    if found.dropped:
        print(format_skipped(found.dropped, videos))
    print(f"{videos} videos ({found.minutes:.1f} min) in {found.seconds:.1f} s")
    for name, others in found.of_streams.items():
        write_predictions(out / f"predictions-{name}.json", others)
    if not found.has_truth:
        write_predictions(out / "predictions.json", found.detections)
        for stale in ("metrics.json", REPORT, TABLES, *PICTURES):
            (out / stale).unlink(missing_ok=True)
        print(f"no annotations to score against; detections in {out / 'predictions.json'}")
        return
    with found.watch.stage("scoring"):
        result, streams = found.score()
        write_results(out, found.detections, result, streams, found.skipped)
        print_scores(result, streams, out)
    settings = found.detector.config
    write_scores_report(
        out,
        f"{checkpoint} on '{settings.data.test_subset}'",
        found.truth(),
        found.detections,
        result,
        streams,
        len(found.skipped),
        evaluation_sections(
            out, found.finished_launch(), dump(settings), found.skipped, checkpoint.parent
        ),
    )
    print(f"report: {out / REPORT}")
    _update_training_report(checkpoint.parent, out)


def print_scores(result: MeanAP, streams: Mapping[str, MeanAP], out: Path) -> None:
    """Print the table, and the single streams' scores of a fused detector."""
    print(scores_table(result))
    for name, alone in streams.items():
        print(f"{name} alone: average mAP {alone.average:.4f}")
    print(f"average mAP {result.average:.4f}; details in {out}")


def _update_training_report(run: Path, out: Path) -> None:
    """Let the report of a training run, if there is one, show a score that is in its folder."""
    if (run / LAUNCHES).exists() and out.resolve().is_relative_to(run.resolve()):
        try:
            write_training_report(run)
        except (OSError, ValueError) as error:
            print(f"warning: {run / REPORT} does not show this score: {error}")


if __name__ == "__main__":
    cli.run(main)
