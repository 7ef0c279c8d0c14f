"""Score a checkpoint on videos, or a predictions file on annotations.

    python evaluate/run.py --checkpoint runs/demo/last.pt [--config FILE] [--out FOLDER]
    python evaluate/run.py --predictions FILE --annotations FILE --subset test --tious 0.5 0.75

A checkpoint brings its config; --config replaces it, and dotted overrides change single settings.
Prints a table; writes metrics.json, predictions.json and tious.png into --out.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from configs.load import dump, load, parse
from evaluate.annotations import (
    Detection,
    read_annotations,
    read_predictions,
    select,
    write_predictions,
)
from evaluate.mean_ap import MeanAP, mean_average_precision
from evaluate.report import draw_tious, table
from train.checkpoint import load_checkpoint
from train.config import Experiment
from train.dataset import load_annotations, load_items
from train.detector import Detector
from train.validate import detect_all, score, window_loader

Predictions = dict[str, list[Detection]]
THUMOS_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, help="detector to run over the test videos")
    parser.add_argument("--config", type=Path, help="use this config, not the checkpoint's own")
    parser.add_argument("--predictions", type=Path, help="score this file instead of a checkpoint")
    parser.add_argument("--annotations", type=Path, help="truth for --predictions")
    parser.add_argument("--subset", help="which videos; default: the config's test subset")
    parser.add_argument("--tious", type=float, nargs="+", help="tIoU thresholds")
    parser.add_argument(
        "--out", type=Path, help="folder for the results; default: beside the input"
    )
    args, overrides = parser.parse_known_args()
    if bool(args.checkpoint) == bool(args.predictions):
        parser.error("give either --checkpoint or --predictions")
    if args.predictions and not (args.annotations and args.subset):
        parser.error("--predictions needs --annotations and --subset")
    if args.predictions and overrides:
        parser.error(f"--predictions takes no settings: {' '.join(overrides)}")
    try:
        scored = score_file(args) if args.predictions else score_checkpoint(args, overrides)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if scored is not None:
        write_results(args.out or default_out(args), *scored)


def default_out(args: argparse.Namespace) -> Path:
    """Return the folder beside the checkpoint or the predictions that results go into."""
    source: Path = args.checkpoint or args.predictions
    return source.parent / "evaluation"


def score_file(args: argparse.Namespace) -> tuple[Predictions, MeanAP]:
    """Score a predictions file against an annotation file."""
    found = read_predictions(args.predictions)
    videos = select(read_annotations(args.annotations), args.subset)
    truth = {video.name: video.segments for video in videos}
    foreign = found.keys() - truth.keys()
    if foreign:
        print(
            f"warning: {len(foreign)} videos of {args.predictions} are not in subset "
            f"'{args.subset}'; as in the public evaluation, their predictions count as false"
        )
    return found, mean_average_precision(truth, found, args.tious or THUMOS_TIOUS)


def score_checkpoint(
    args: argparse.Namespace, overrides: list[str]
) -> tuple[Predictions, MeanAP] | None:
    """Detect in all test videos and score; processes other than the first return None."""
    own = load_checkpoint(args.checkpoint).config
    if args.tious:
        overrides = [*overrides, f"--evaluation.tious={list(args.tious)}"]
    if args.config:
        config = load(Experiment, args.config, overrides)
    else:
        config = parse(Experiment, dump(own), overrides, str(args.checkpoint))
    accelerator = Accelerator(mixed_precision=config.training.mixed_precision)
    detector = Detector.from_checkpoint(args.checkpoint, config).to(accelerator.device)
    annotations = load_annotations(config.data)
    items = load_items(config.data, annotations, args.subset or config.data.test_subset)
    began = time.monotonic()
    windows = window_loader(items, config.sampling.test_overlap, config, accelerator)
    found = detect_all(detector, items, windows, accelerator, "detecting")
    if not accelerator.is_main_process:
        return None
    minutes = sum(item.duration_s for item in items) / 60
    seconds = time.monotonic() - began
    print(f"{len(items)} videos ({minutes:.1f} min) in {seconds:.1f} s")
    return found, score(items, found, detector)


def write_results(out: Path, found: Predictions, result: MeanAP) -> None:
    """Print the table and leave metrics, predictions and a picture in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    aside = out / "metrics.json.part"
    aside.write_text(json.dumps(result.as_dict(), indent=1) + "\n")
    aside.replace(out / "metrics.json")
    write_predictions(out / "predictions.json", found)
    draw_tious(result, out / "tious.png")
    print(table(result))
    print(f"average mAP {result.average:.4f}; details in {out}")


if __name__ == "__main__":
    main()
