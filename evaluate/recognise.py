"""Recognise the actions in video files, or score a recogniser on a list of clips.

    python evaluate/recognise.py VIDEO [VIDEO …] --checkpoint runs/mine/best.pt
    python evaluate/recognise.py VIDEO --checkpoint TADA2D.pyth \\
        --config configs/recognition/tada2d_r50_k400.yaml --classes kinetics_classnames.json
    python evaluate/recognise.py --checkpoint FILE [--subset test] [--reversed] [--out FOLDER]

With videos it prints the five best classes of each with their scores. Without, it tests on a
subset of the experiment's clips: it prints a table and writes metrics.json, predictions.json and
confusion.png into --out. Published checkpoints have no settings: --config provides
them, --classes the names of their classes. Dotted overrides change single settings, as the
number of views: --views.clips 1 --crops.crops 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from configs import cli
from configs.atomic import write_text
from configs.loader import dump, load, parse
from configs.options import ScriptParser
from train.recognition.config import Recognition

if TYPE_CHECKING:
    from evaluate.metrics.accuracy import Accuracy
    from train.recognition.dataset import Example
    from train.recognition.recogniser import Recogniser
    from train.recognition.training import ClipScores

TOP = 5
USES = ("data", "views", "crops", "evaluation", "training.precision", "training.workers")


def main() -> None:
    parser = ScriptParser(__doc__, Recognition, USES)
    parser.add_argument("videos", nargs="*", type=Path, help="files to recognise")
    parser.add_argument("--checkpoint", type=Path, required=True, help="ours, or TAdaConv's")
    parser.add_argument(
        "--config", type=Path, help="YAML of settings, in place of the checkpoint's"
    )
    parser.add_argument(
        "--classes", type=Path, nargs="+", help="names of a published checkpoint's classes"
    )
    parser.add_argument("--subset", help="which clips; default: the config's test subset")
    parser.add_argument("--reversed", action="store_true", help="test on reversed clips as well")
    parser.add_argument("--out", type=Path, help="folder of results; default: beside the input")
    args, overrides = parser.parse()
    if args.videos and (args.subset or args.reversed or args.out):
        parser.error("--subset, --reversed and --out go with a list of clips, not with videos")
    files = args.checkpoint, args.config, args.classes
    recogniser = read_recogniser(*files, overrides, needs_data=not args.videos)
    if args.videos:
        print_actions(recogniser, args.videos)
    else:
        score_subset(recogniser, args.checkpoint, args.subset, args.reversed, args.out)


def read_recogniser(
    path: Path,
    file: Path | None,
    classes: Sequence[Path] | None,
    overrides: list[str],
    needs_data: bool,
) -> Recogniser:
    """Return the checkpoint's recogniser, with the settings of the config file and command line."""
    from train.engine.checkpoint import (
        check_kind,
        find_data,
        format_of,
        is_checkpoint,
        load_checkpoint,
    )
    from train.recognition.recogniser import Recogniser, recogniser_from_weights

    if path.exists() and not is_checkpoint(path, Recognition):
        check_kind(path, format_of(path))
        if file is None:
            raise ValueError(
                f"{path} is not a checkpoint of train/recognise.py and has no settings: add "
                "--config, as configs/recognition/tada2d_r50_k400.yaml"
            )
        return recogniser_from_weights(path, load(Recognition, file, overrides), classes or ())
    if classes:
        raise ValueError(f"--classes: {path} has its own class names; omit the option")
    saved = load_checkpoint(path, Recognition)
    if file:
        config = load(Recognition, file, overrides)
    else:
        config = parse(Recognition, dump(saved.config), overrides, str(path))
    if needs_data:
        config = find_data(config, saved, path, needs_videos=True)
    if config.network != replace(saved.config.network, weights=config.network.weights):
        raise ValueError(f"{path} holds another network: {saved.config.network}")
    # Its classes are the checkpoint's, whatever class lists the config names now.
    recogniser = Recogniser.restore(saved, path)
    recogniser.config = config
    return recogniser


def print_actions(recogniser: Recogniser, videos: list[Path]) -> None:
    """Print the best classes of every video."""
    from accelerate import Accelerator

    recogniser.network.to(Accelerator().device)
    for video in videos:
        print(video)
        for name, best in recogniser.recognise(video, TOP).items():
            if name:
                print(f"  {name}")
            for label, value in best:
                print(f"  {value:6.4f}  {label}")


def score_subset(
    recogniser: Recogniser,
    checkpoint: Path,
    subset: str | None,
    on_reversed: bool,
    out: Path | None,
) -> None:
    """Score all clips of a subset, and reversed ones if asked for; write the results."""
    from evaluate.reports.figures import draw_confusion
    from train.data.items import format_skipped
    from train.recognition.evaluation import evaluate_recogniser

    found = evaluate_recogniser(recogniser, checkpoint, subset, on_reversed, out)
    if found is None:
        return
    out = found.out
    if found.skipped:
        print(format_skipped(found.skipped, found.listed, "clips"))
    write_scores(out / "predictions.json", recogniser, found.examples, found.scores)
    if not found.has_labels:
        print(f"no labels to score against; predictions are in {out / 'predictions.json'}")
        return
    result, of_time = found.accuracy(), found.accuracy_of_time()
    clips = len(found.scores)
    metrics: dict[str, Any] = result.to_dict() | {"clips": clips}
    if of_time:
        metrics["reversed"] = of_time
    metrics |= {"per_class": result.per_class, "skipped_videos": found.skipped}
    write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    first = recogniser.sets[0]
    draw_confusion(result.confusion[first.name], first.classes, out / "confusion.png")
    print(accuracy_table(result))
    for name, value in of_time.items():
        print(f"{name.replace('_', ' ')}: {value:.4f}")
    print(f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} of {clips} clips; in {out}")


def write_scores(
    path: Path, recogniser: Recogniser, examples: Sequence[Example], scores: ClipScores
) -> None:
    """Write the best classes of every clip, of each label set."""
    from evaluate.metrics.accuracy import split_scores

    results: dict[str, Any] = {}
    for position, row in scores.items():
        parts = split_scores(recogniser.sets, row[None])
        for each, part in zip(recogniser.sets, parts, strict=True):
            best = np.argsort(-part[0], kind="stable")[:TOP]
            found = [{"label": each.classes[k], "score": float(part[0, k])} for k in best]
            if each.name:
                results.setdefault(examples[position].name, {})[each.name] = found
            else:
                results[examples[position].name] = found
    write_text(path, json.dumps({"results": results}, indent=1) + "\n")


def accuracy_table(result: Accuracy) -> str:
    """Return top-1 per class as aligned text, label set after label set."""
    lines = []
    for name, classes in result.per_class.items():
        counts = result.confusion[name].sum(1)
        clips = counts[counts > 0].tolist()
        width = max(map(len, classes))
        lines.append(f"{name or 'class':<{width}}  clips   top-1")
        for (label, top1), count in zip(classes.items(), clips, strict=True):
            lines.append(f"{label:<{width}}  {count:5d}  {top1:.4f}")
        if name in result.of_sets:
            lines.append("{}: top-1 {:.4f}, top-5 {:.4f}".format(name, *result.of_sets[name]))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
