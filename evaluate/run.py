"""Score a checkpoint on videos, or a predictions file on annotations.

    python evaluate/run.py --checkpoint runs/demo/forward/last.pt [--config FILE] [--out FOLDER]
    python evaluate/run.py --checkpoint FILE --cache URL
    python evaluate/run.py --predictions FILE --annotations FILE --subset test --tious 0.5 0.75
    python evaluate/run.py --predictions FORWARD.json REVERSED.json …     # both together
    python evaluate/run.py --predictions FILE --config FILE --page mistakes.html

A checkpoint brings its config; --config is laid over it (an OpenTAD checkpoint needs one), and
dotted overrides change single settings. With --predictions, --config supplies blocked videos, class
list and tIoUs; several files are joined and suppressed again. Prints a table; writes report.html,
with its figures and, as report.json, its tables, metrics.json and predictions.json into --out, for
a detector of two streams each stream's, too. --page is an HTML file with each video's timeline,
its truth, its mistakes and what is missed. --label_studio, --elan and --via write what was found
with at least the score --threshold as files of these annotation tools, for people who correct it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from configs import cli
from configs.loader import dump
from configs.options import ScriptParser
from evaluate.annotations import Detection
from evaluate.files.annotation_tools import MediaFile, ToolFiles
from evaluate.files.predictions import write_predictions
from evaluate.options import add_threshold, add_tool_files, check_detections, check_threshold
from train.config import Experiment, with_cache
from train.engine.stopwatch import Stopwatch

if TYPE_CHECKING:
    from evaluate.metrics.scored import ScoredDetections
    from train.detector.evaluation import Evaluation
    from train.detector.prediction_files import LoadedPredictions

USES = (
    "data",
    "sampling",
    "pixels",
    "evaluation",
    "cache",
    "training.precision",
    "training.workers",
)


def main() -> None:
    parser = ScriptParser(__doc__, Experiment, USES)
    parser.add_argument("--checkpoint", type=Path, help="detector to run over the test videos")
    parser.add_argument("--config", type=Path, help="YAML of settings, over the checkpoint's")
    parser.add_argument(
        "--predictions", type=Path, nargs="+", help="score this file, or several files joined"
    )
    parser.add_argument("--annotations", type=Path, help="truth; default: the config's")
    parser.add_argument("--subset", help="which videos; default: the config's test subset")
    parser.add_argument("--tious", type=float, nargs="+", help="tIoU thresholds")
    parser.add_argument("--out", type=Path, help="folder of results; default: beside the input")
    parser.add_argument("--page", type=Path, metavar="FILE", help="HTML: timelines with mistakes")
    parser.add_argument(
        "--videos", type=Path, help="the page's videos; default: the config's, or none"
    )
    parser.add_argument("--cache", help="store of activations to read from and to add to")
    add_tool_files(parser)
    add_threshold(parser, "least score in files of annotation tools")
    args, overrides = parser.parse()
    truth = args.annotations, args.subset
    check_detections(parser, args.checkpoint, args.predictions, args.config, truth, overrides)
    if args.cache and not args.checkpoint:
        parser.error("--cache goes with --checkpoint")
    if args.videos and not (args.page and args.predictions):
        parser.error("--videos goes with --page and --predictions")
    check_threshold(parser, args.threshold)
    if args.videos and not args.videos.is_dir():
        parser.error(f"--videos: there is no folder {args.videos}")
    if args.page:
        args.page.parent.mkdir(parents=True, exist_ok=True)  # now, not after hours of detection
    overrides = with_cache(overrides, args.cache)
    if args.annotations:
        overrides.append(f"--data.annotations={args.annotations}")
    if args.tious:
        overrides.append(f"--evaluation.tious={args.tious}")
    tools = ToolFiles(args.label_studio, args.elan, args.via)
    tools.make_folders()
    from train.detector.evaluation import evaluate_checkpoint
    from train.detector.prediction_files import THUMOS_TIOUS, load_predictions

    if args.checkpoint:
        inputs = args.checkpoint, args.config, overrides, args.subset, args.cache, args.out
        evaluation = evaluate_checkpoint(*inputs)
        if evaluation is not None:
            report_checkpoint(args.checkpoint, evaluation)
            items = {item.name: MediaFile(item.path, item.fps) for item in evaluation.items}
            tools.write(with_score(evaluation.detections, args.threshold), items)
            if args.page:
                write_evaluation_page(args.page, args.checkpoint, evaluation)
        return
    given = args.annotations, args.subset, args.tious or THUMOS_TIOUS
    loaded = load_predictions(args.predictions, args.config, overrides, *given)
    rates = {name: video.fps for name, video in loaded.videos.items()}
    media = {name: MediaFile(Path(name), rates.get(name)) for name in loaded.detections}
    report_files(args.predictions, loaded, args.out)
    tools.write(with_score(loaded.detections, args.threshold), media)
    if args.page:
        write_predictions_page(args.page, args.predictions, loaded, args.videos)


def with_score(
    found: Mapping[str, Sequence[Detection]], threshold: float
) -> dict[str, list[Detection]]:
    """Return the detections with at least this score."""
    return {name: [d for d in each if d.score >= threshold] for name, each in found.items()}


def report_files(paths: Sequence[Path], loaded: LoadedPredictions, out: Path | None) -> None:
    """Score predictions files; print the scores and write them with their report."""
    from evaluate.reports.launches import FINISHED, new_launch
    from evaluate.reports.page import REPORT
    from evaluate.reports.scores import write_scores_report
    from evaluate.reports.sections import evaluation_sections

    for problem in loaded.problems:
        print(f"warning: {problem}")
    out = out or paths[0].parent / f"{'+'.join(path.stem for path in paths)}-{loaded.subset}"
    watch, launch = Stopwatch("scoring"), new_launch()
    scored = loaded.score()
    write_and_print(out, scored)
    launch = replace(launch, outcome=FINISHED, seconds=watch.seconds())
    title = f"{' + '.join(map(str, paths))} on '{loaded.subset}'"
    write_scores_report(out, title, scored, evaluation_sections(out, launch))
    print(f"report: {out / REPORT}")
    loaded.check_found()


def report_checkpoint(checkpoint: Path, evaluation: Evaluation) -> None:
    """Write what a checkpoint detected, then score it; print and write the scores, too."""
    from evaluate.reports.page import REPORT
    from evaluate.reports.scores import write_scores_report, write_unscored
    from evaluate.reports.sections import evaluation_sections
    from evaluate.reports.training import update_training_report
    from train.data.items import format_skipped

    out, videos = evaluation.out, len(evaluation.items)
    if evaluation.dropped:
        print(format_skipped(evaluation.dropped, videos))
    print(f"{videos} videos ({evaluation.minutes:.1f} min) in {evaluation.seconds:.1f} s")
    for name, detections in evaluation.of_streams.items():
        write_predictions(out / f"predictions-{name}.json", detections)
    if not evaluation.has_truth:
        write_unscored(out, evaluation.detections)
        print(f"no annotations to score against; detections in {out / 'predictions.json'}")
        evaluation.check_found()
        return
    with evaluation.watch.stage("scoring"):
        scored = evaluation.score()
        write_and_print(out, scored)
    config, launch = evaluation.detector.config, evaluation.finished_launch()
    sections = evaluation_sections(out, launch, dump(config), scored.skipped, checkpoint.parent)
    write_scores_report(out, f"{checkpoint} on '{config.data.test_subset}'", scored, sections)
    print(f"report: {out / REPORT}")
    if problem := update_training_report(checkpoint.parent, out):
        print(f"warning: {problem}")
    evaluation.check_found()


def write_evaluation_page(page: Path, checkpoint: Path, evaluation: Evaluation) -> None:
    """Write the page of what a checkpoint detected."""
    from evaluate.reports.mistakes_page import VideoFile, write_mistakes_page

    items = [item for item in evaluation.items if item.name in evaluation.detections]
    files = {
        # The file of a video whose activations are cached may be gone.
        item.name: VideoFile(item.path if item.path.exists() else None, item.duration_s, item.fps)
        for item in items
    }
    title = f"Found by {checkpoint}"
    write_mistakes_page(page, title, evaluation.truth(), evaluation.detections, files)
    print(f"page: {page}")


def write_predictions_page(
    page: Path, paths: Sequence[Path], loaded: LoadedPredictions, folder: Path | None
) -> None:
    """Write the page of predictions files.

    Args:
        folder: of the videos; default: the config's, if it is there.
    """
    from evaluate.reports.mistakes_page import VideoFile, write_mistakes_page
    from extract.video.files import files_by_name

    folder = folder or loaded.folder
    paths_by_name = files_by_name(folder) if folder and folder.is_dir() else {}
    files = {
        name: VideoFile(next(iter(paths_by_name.get(name, ())), None), video.duration_s, video.fps)
        for name, video in loaded.videos.items()
        if name in loaded.truth
    }
    title = f"{' + '.join(map(str, paths))} on '{loaded.subset}'"
    write_mistakes_page(page, title, loaded.truth, loaded.detections, files)
    print(f"page: {page}")


def write_and_print(out: Path, scored: ScoredDetections) -> None:
    """Write the scores; print their table, and each stream's of a fused detector."""
    from evaluate.reports.figures import scores_table
    from evaluate.reports.scores import write_results

    write_results(out, scored)
    print(scores_table(scored.result))
    for name, alone in scored.streams.items():
        print(f"{name} alone: average mAP {alone.average:.4f}")
    print(f"average mAP {scored.result.average:.4f}; details in {out}")


if __name__ == "__main__":
    cli.run(main)
