"""Diagnose detections: kinds of false positives, missed actions, reliability of scores (DETAD).

    python evaluate/diagnose.py --checkpoint runs/fused/last.pt      # once evaluate/run.py has run
    python evaluate/diagnose.py --predictions FILE … --annotations FILE --subset test
    python evaluate/diagnose.py --predictions FILE … --config FILE --tiou 0.8

Several predictions files are several detectors, side by side. With --checkpoint they are the files
that evaluate/run.py wrote beside it: the result and, of two streams, each one's. A config provides
blocked videos, class list and subset. Prints a table; writes report.html, with its figures and, as
report.json, its tables, and diagnosis.json (all numbers) into --out.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from shlex import quote
from typing import TYPE_CHECKING

from configs import cli
from configs.atomic import write_text
from configs.loader import dump, load
from configs.options import ScriptParser
from configs.progress import ProgressBar
from evaluate.annotations import Video, select_videos
from evaluate.files.predictions import read_predictions, scoring_problems
from evaluate.options import check_detections
from extract.checkpoints.hub import folder_of, locate
from train.config import Experiment
from train.engine.stopwatch import Stopwatch

if TYPE_CHECKING:
    from evaluate.diagnosis.diagnosis import Diagnosis
    from train.detector.evaluation import Truth

USES = ("data", "evaluation")


def main() -> None:
    parser = ScriptParser(__doc__, Experiment, USES)
    parser.add_argument("--checkpoint", type=Path, help="detector that evaluate/run.py has scored")
    parser.add_argument("--predictions", type=Path, nargs="+", help="files, one for each detector")
    parser.add_argument("--names", nargs="+", help="what to call them; default: after the files")
    parser.add_argument("--config", type=Path, help="YAML of settings, over the checkpoint's")
    parser.add_argument("--annotations", type=Path, help="truth; default: the config's")
    parser.add_argument("--subset", help="which videos; default: the config's test subset")
    parser.add_argument("--tiou", type=float, default=0.5, help="threshold; default: 0.5")
    parser.add_argument("--out", type=Path, help="folder of results; default: beside the input")
    args, overrides = parser.parse()
    truth = args.annotations, args.subset
    check_detections(parser, args.checkpoint, args.predictions, args.config, truth, overrides)
    if args.checkpoint and args.names:
        parser.error("--names goes with --predictions")
    if args.annotations:
        overrides.append(f"--data.annotations={args.annotations}")
    diagnose_predictions(
        args.checkpoint,
        args.predictions,
        args.config,
        overrides,
        names=args.names,
        annotation_file=args.annotations,
        subset=args.subset,
        tiou=args.tiou,
        out=args.out,
    )


def diagnose_predictions(
    checkpoint: Path | None,
    predictions: list[Path] | None,
    config_file: Path | None,
    overrides: list[str],
    *,
    names: list[str] | None,
    annotation_file: Path | None,
    subset: str | None,
    tiou: float,
    out: Path | None,
) -> None:
    """Diagnose a checkpoint's predictions, or the given files; print and write all results.

    Raises:
        ValueError: a file is missing or malformed, or files and arguments do not fit.
    """
    from evaluate.diagnosis.diagnosis import diagnose
    from evaluate.reports.diagnosis_report import write_diagnosis_report
    from evaluate.reports.launches import FINISHED, new_launch
    from evaluate.reports.page import REPORT
    from evaluate.reports.sections import evaluation_sections
    from evaluate.reports.training import update_training_report
    from train.detector.evaluation import relabel_truth
    from train.detector.prediction_files import load_truth

    watch, launch = Stopwatch("diagnosing"), new_launch()
    config = read_experiment(checkpoint, config_file, overrides)
    annotations, subset = load_truth(config.data if config else None, annotation_file, subset)
    if checkpoint:
        assert config is not None
        main = "fused" if len(config.directions) > 1 else str(config.direction)
        files = find_predictions(checkpoint, subset, main)
        out = out or files[main].parent / "diagnosis"
    else:
        assert predictions is not None
        files = name_files(predictions, names)
        out = out or predictions[0].parent / f"diagnosis-{'+'.join(files)}"
    found = {name: read_predictions(path) for name, path in files.items()}
    videos = select_videos(annotations, subset)
    if checkpoint:
        # Videos that evaluate/run.py could not read do not count there, either.
        seen = next(iter(found.values()))
        videos = [video for video in videos if video.name in seen]
    truth: Truth = {video.name: video.segments for video in videos}
    if config is not None:
        truth = relabel_truth(truth, config.data, config.evaluation)
    for name, detections in found.items():
        labels = {segment.label for segments in truth.values() for segment in segments}
        for problem in scoring_problems(detections, truth, labels | {*annotations.classes}, subset):
            print(f"warning: {name}: {problem}")
    durations_s = [video.duration_s for video in videos]
    diagnoses = {
        name: diagnose(truth, detections, durations_s, tiou)
        for name, detections in ProgressBar(found.items(), "diagnosing", unit="file", leave=False)
    }
    notes = write_diagnosis(out, files, subset, videos, diagnoses)
    launch = replace(launch, outcome=FINISHED, seconds=watch.seconds())
    run = checkpoint.parent if checkpoint else None
    settings = dump(config) if config else ""
    title = f"{checkpoint or ', '.join(map(str, files.values()))} on '{subset}'"
    more = evaluation_sections(out, launch, settings, run=run)
    write_diagnosis_report(out, title, diagnoses, len(videos), notes, more)
    print(f"report: {out / REPORT}")
    if run and (unlinked := update_training_report(run, out)):
        print(f"warning: {unlinked}")


def read_experiment(
    checkpoint: Path | None, config_file: Path | None, overrides: list[str]
) -> Experiment | None:
    """Return the settings of the checkpoint or the config; None if there is neither."""
    from train.detector.sources import read_source, resolve_config
    from train.engine.checkpoint import find_data

    if checkpoint:
        saved = read_source(checkpoint, config_file, overrides)
        config = resolve_config(config_file, saved, str(checkpoint), overrides)
        return find_data(config, saved, checkpoint, needs_videos=False)
    return load(Experiment, config_file, overrides) if config_file else None


def find_predictions(checkpoint: Path, subset: str, main: str) -> dict[str, Path]:
    """Return the predictions files of a checkpoint's evaluation, the main result's first.

    Raises:
        ValueError: there are none.
    """
    folder = folder_of(checkpoint) / "evaluation" / f"{checkpoint.stem}-{subset}"
    path = folder / "predictions.json"
    if not path.is_file():
        raise ValueError(
            f"there is no {path}: score it first (python evaluate/run.py --checkpoint "
            f"{quote(str(checkpoint))}), or give the file that has its detections with "
            "--predictions"
        )
    if path.stat().st_mtime < locate(checkpoint).stat().st_mtime:
        print(f"warning: {path} is older than {checkpoint}; score it again (evaluate/run.py)")
    streams = sorted(folder.glob("predictions-*.json"))
    return {main: path} | {path.stem.removeprefix("predictions-"): path for path in streams}


def name_files(files: list[Path], names: list[str] | None) -> dict[str, Path]:
    """Return files by the given names, or by their own without `predictions-` and ending.

    Raises:
        ValueError: there are too many, not as many names as files, or not all differ.
    """
    from evaluate.reports.diagnosis import MOST_DETECTORS

    given = names or [path.stem.removeprefix("predictions-") for path in files]
    if len(given) != len(files):
        raise ValueError(f"--names: {len(files)} predictions files need as many, not {len(given)}")
    if len(given) > MOST_DETECTORS:
        raise ValueError(
            f"--predictions: {len(given)} detectors are too many for one picture; "
            f"give at most {MOST_DETECTORS}"
        )
    found = dict(zip(given, files, strict=True))
    if len(found) < len(files):
        raise ValueError(f"{', '.join(given)}: names must differ; give them with --names")
    return found


def write_diagnosis(
    out: Path,
    files: Mapping[str, Path],
    subset: str,
    videos: list[Video],
    diagnoses: Mapping[str, Diagnosis],
) -> list[str]:
    """Print the table, and write tables and pictures into `out`; return what is unknown."""
    from evaluate.reports.diagnosis import diagnosis_table, draw_diagnosis

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; choose a folder")
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "subset": subset,
        "videos": len(videos),
        "files": {name: str(path) for name, path in files.items()},
        "detectors": {name: asdict(diagnosis) for name, diagnosis in diagnoses.items()},
    }
    write_text(out / "diagnosis.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draw_diagnosis(diagnoses, out)
    print(diagnosis_table(diagnoses))
    one = next(iter(diagnoses.values()))
    notes = []
    if "coverage" not in one.characteristics:
        notes.append(
            "coverage is unknown: the annotations do not give the videos' durations "
            "(data.info_csv of a --config may)"
        )
    if any(diagnosis.reliability is None for diagnosis in diagnoses.values()):
        notes.append("calibration is unknown where scores are not all between 0 and 1")
    for note in notes:
        print(note)
    print(f"all tables and pictures in {out}")
    return [f"{note[0].upper()}{note[1:]}." for note in notes]


if __name__ == "__main__":
    cli.run(main)
