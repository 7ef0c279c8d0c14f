"""Say which actions video files show, or score a recogniser on a list of clips.

    python evaluate/recognise.py VIDEO [VIDEO …] --checkpoint runs/mine/best.pt
    python evaluate/recognise.py VIDEO --checkpoint TADA2D.pyth \\
        --config configs/recognition/tada2d_r50_k400.yaml --classes kinetics_classnames.json
    python evaluate/recognise.py --checkpoint FILE [--subset test] [--reversed] [--out FOLDER]

With videos it prints the five best classes of each with their scores. Without, it tests on a
subset of the experiment's clips: it prints a table and writes metrics.json, predictions.json and
confusion.png into --out. Published checkpoints bring no settings: --config says how they see
videos, --classes what their classes are called. Dotted overrides change single settings, as the
number of views: --views.clips 1 --crops.crops 1.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from configs import cli
from configs.atomic import write_text
from configs.loader import dump, field_names, load, parse
from configs.messages import first_of
from evaluate.metrics.accuracy import Accuracy, flat_names, split_scores, within_pairs
from evaluate.reports.figures import draw_confusion
from train.data.videos import skipped_warning
from train.engine.checkpoint import format_of, is_checkpoint, load_checkpoint, refuse_other_kind
from train.engine.session import WAIT_FOR_OTHERS
from train.recognition.config import Recognition
from train.recognition.dataset import Example, load_examples, other_labels, read_clips
from train.recognition.recogniser import Recogniser, adopt
from train.recognition.training import Scores, labelled, score, score_all, share_loader

TOP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("videos", nargs="*", type=Path, help="what happens in these files?")
    parser.add_argument("--checkpoint", type=Path, required=True, help="ours, or TAdaConv's")
    parser.add_argument("--config", type=Path, help="settings to use, not the checkpoint's own")
    parser.add_argument(
        "--classes", type=Path, nargs="+", help="names of a published checkpoint's classes"
    )
    parser.add_argument("--subset", help="which clips; default: the config's test subset")
    parser.add_argument("--reversed", action="store_true", help="test on turned clips as well")
    parser.add_argument("--out", type=Path, help="folder of results; default: beside the input")
    args, overrides = parser.parse_known_args(joined(sys.argv[1:]))
    if args.videos and (args.subset or args.reversed or args.out):
        parser.error("--subset, --reversed and --out go with a list of clips, not with videos")
    recogniser = read_recogniser(args, overrides)
    if args.videos:
        name_actions(recogniser, args.videos)
    else:
        test(recogniser, args)


def joined(arguments: list[str]) -> list[str]:
    """Return arguments with settings and their values in one, so that no value seems a video."""
    settings = {f"--{name}" for name in field_names(Recognition)} - {"--out"}
    found, rest = list[str](), iter(arguments)
    for argument in rest:
        value = next(rest, None) if argument in settings else None
        found.append(argument if value is None else f"{argument}={value}")
    return found


def read_recogniser(args: argparse.Namespace, overrides: list[str]) -> Recogniser:
    """Return what the checkpoint holds, with the settings of the command line."""
    path = args.checkpoint
    if path.exists() and not is_checkpoint(path, Recognition):
        refuse_other_kind(path, format_of(path))
        if args.config is None:
            raise ValueError(
                f"{path} is no checkpoint of train/recognise.py and brings no settings: add "
                "--config, as configs/recognition/tada2d_r50_k400.yaml"
            )
        return adopt(path, load(Recognition, args.config, overrides), args.classes or ())
    if args.classes:
        raise ValueError(f"--classes: {path} knows its classes; leave it out")
    saved = load_checkpoint(path, Recognition)
    if args.config:
        config = load(Recognition, args.config, overrides)
    else:
        config = parse(Recognition, dump(saved.config), overrides, str(path))
    if config.network != replace(saved.config.network, weights=config.network.weights):
        raise ValueError(f"{path} holds another network: {saved.config.network}")
    # What it tells apart is the checkpoint's, whatever lists there are now.
    recogniser = Recogniser.restore(saved, path)
    recogniser.config = config
    return recogniser


def name_actions(recogniser: Recogniser, videos: list[Path]) -> None:
    """Print the best classes of every video."""
    recogniser.network.to(Accelerator().device)
    for video in videos:
        print(video)
        for name, best in recogniser.recognise(video, TOP).items():
            if name:
                print(f"  {name}")
            for label, value in best:
                print(f"  {value:6.4f}  {label}")


def test(recogniser: Recogniser, args: argparse.Namespace) -> None:
    """Score all clips of a subset, and perhaps turned ones; write what was found."""
    config = recogniser.config
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS)],
    )
    turned = other_labels(config.data.reversed_labels, recogniser.sets, "data.reversed_labels")
    if args.reversed and not turned:
        raise ValueError(
            "--reversed: name the classes that are each other's time reversal, as "
            "--data.reversed_labels '[[SlideLeft, SlideRight]]'"
        )
    subset = args.subset or config.data.test_subset
    clips = read_clips(config.data)
    strangers = sorted(set(flat_names(clips.sets)) - set(recogniser.classes))
    if strangers:
        raise ValueError(
            f"{args.checkpoint} knows {', '.join(first_of(recogniser.classes))}, but "
            f"{config.data.annotations} also has {', '.join(first_of(strangers))}: it was "
            "trained on another dataset"
        )
    # A list of a few clips need not have all classes.
    clips = clips._replace(sets=recogniser.sets)
    ((examples, skipped),) = load_examples(config.data, clips, [subset], accelerator)
    out = args.out or args.checkpoint.parent / "evaluation" / f"{args.checkpoint.stem}-{subset}"
    out.mkdir(parents=True, exist_ok=True)  # now, not after hours of testing
    recogniser.network.to(accelerator.device)
    views = share_loader(recogniser, examples, accelerator)
    scores, dropped = score_all(recogniser, examples, views, accelerator, "recognising")
    back: Scores = {}
    if args.reversed:
        views = share_loader(recogniser, examples, accelerator, turned=True)
        back, _ = score_all(recogniser, examples, views, accelerator, "recognising, reversed")
    if not accelerator.is_main_process:
        return
    skipped = skipped | dropped
    if skipped:
        print(skipped_warning(skipped, len(examples) + len(dropped)))
    write_scores(out / "predictions.json", recogniser, examples, scores)
    if not any(examples[position].labels for position in scores):
        print(f"no labels to score against; what was found is in {out / 'predictions.json'}")
        return
    result = score(recogniser.sets, examples, scores)
    metrics: dict[str, Any] = result.as_dict() | {"clips": len(scores)}
    if back:
        metrics["reversed"] = of_time(recogniser, examples, scores, back, turned)
    metrics |= {"per_class": result.per_class, "skipped_videos": skipped}
    write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    first = recogniser.sets[0]
    draw_confusion(result.confusion[first.name], first.classes, out / "confusion.png")
    print(table(result))
    for name, value in metrics.get("reversed", {}).items():
        print(f"{name.replace('_', ' ')}: {value:.4f}")
    print(f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} of {len(scores)} clips; in {out}")


def of_time(
    recogniser: Recogniser,
    examples: list[Example],
    scores: Scores,
    back: Scores,
    turned: dict[int, int],
) -> dict[str, float]:
    """Return how far what a recogniser says follows the direction of time.

    Reversed clips count with the reversed class's label, where it has one. Within pairs, the two
    classes of a pair are compared alone: a network that does not see the order of frames says the
    same of a clip and of its reversal, and is right in half of both.
    """
    first = slice(0, len(recogniser.sets[0].classes))
    labels, values = labelled(examples, scores)
    labels_back, values_back = labelled(examples, back)
    labels, labels_back = labels[:, 0], labels_back[:, 0]
    known = np.array([int(label) in turned for label in labels_back])
    if not known.any():
        raise ValueError("--reversed: no clip is of a class in data.reversed_labels")
    mirrored = np.array([turned[int(label)] for label in labels_back[known]])
    values, values_back = values[:, first], values_back[known][:, first]
    pairs = [(a, b) for a, b in turned.items() if a < b]
    found = {"top1_on_reversed": float((values_back.argmax(1) == mirrored).mean())}
    both = {
        "within_pairs": within_pairs(labels, values, pairs),
        "within_pairs_on_reversed": within_pairs(mirrored, values_back, pairs),
    }
    return found | {name: value for name, value in both.items() if value is not None}


def write_scores(
    path: Path, recogniser: Recogniser, examples: list[Example], scores: Scores
) -> None:
    """Write the best classes of every clip, of each label set."""
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


def table(result: Accuracy) -> str:
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
