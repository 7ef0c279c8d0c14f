"""Bring a cache of activations up to date with checkpoints.

    python extract/run.py --checkpoint runs/demo/forward/best.pt --cache URL [--plan [FILE.json]]
    accelerate launch extract/run.py --checkpoint FORWARD.pt REVERSED.pt --cache URL --of test
    python extract/run.py --config FILE --cache URL       # of the pretrained backbone

Says first what it will do and what that costs. --plan stops there, with a table of the ways to
train: on the videos, decoded frames, proxies or activations; bytes, hours, what each gives up.
Checkpoints of both directions share one decode. What is there already is not computed again, so an
interrupted run just goes on.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import get_args

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from cache.store import Store
from configs.files import write_text
from extract.activations import Activations
from extract.backbone import Cut
from extract.clips import Direction
from extract.plan import Plan, Wanted, distinct_frames, estimate_s, plan, refuse_full_disk
from extract.refresh import refresh
from extract.spans import Span
from extract.videomae import CLIP_FRAMES
from train.cached import evaluation_spans, training_spans
from train.checkpoint import Checkpoint
from train.config import Experiment
from train.detector import Detector
from train.errors import EXPECTED, memory_advice, message, worker_advice
from train.items import (
    Item,
    Items,
    learned_classes,
    load_annotations,
    load_subsets,
    skipped_warning,
)
from train.routes import Place, compare
from train.sources import config_of, new_detector, read_sources
from train.start import (
    WAIT_FOR_PASSES,
    activations_of,
    open_cache,
    refuse_fp16_without_gpu,
    refuse_imported,
    with_cache,
)
from train.trials import measure
from train.workload import Filling, count, filling, proxy_side, trained_from, with_block

PURPOSES = ("train", "validation", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", nargs="+", default=[], help="detectors: their backbones")
    parser.add_argument("--config", help="YAML file of the experiment; default: each checkpoint's")
    parser.add_argument("--cache", help="store of activations; default: the config's cache.url")
    parser.add_argument(
        "--of", nargs="+", choices=PURPOSES, default=["train", "validation"], help="whose spans"
    )
    parser.add_argument(
        "--directions", nargs="+", choices=get_args(Direction), help="default: each config's own"
    )
    parser.add_argument(
        "--plan",
        nargs="?",
        const="",
        metavar="FILE.json",
        help="say what would be done, compare ways to train, and stop; the file gets the table",
    )
    args, overrides = parser.parse_known_args()
    if not (args.checkpoint or args.config):
        parser.error("give --checkpoint, --config or both")
    try:
        run(args, with_cache(overrides, args.cache))
    except EXPECTED as error:
        sys.exit(message(error))
    except KeyboardInterrupt:
        print("interrupted; what was computed is kept, and the same command goes on")
        sys.exit(130)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Plan, say the plan and carry it out."""
    sources: list[tuple[str, Checkpoint | None]] = [(args.config, None)]
    if args.checkpoint:
        sources = [*read_sources(args.checkpoint, args.config, overrides)]
    backbones = [
        (replace(config, direction=direction), saved, source)
        for source, saved in sources
        for config in [_config(args.config, saved, source, overrides)]
        for direction in args.directions or [config.direction]
    ]
    config = backbones[0][0]
    refuse_imported(config)
    if args.directions and any(len(each.directions) > 1 for each, _, _ in backbones):
        raise ValueError("--directions: a detector of two streams has its own; leave it out")
    _refuse_different([config for config, _, _ in backbones])
    if not config.cache.url:
        raise ValueError("--cache: give the store that activations are kept in")
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_PASSES)],
    )
    refuse_fp16_without_gpu(config, accelerator)
    url, planning = config.cache.url, args.plan is not None
    if args.plan:
        _refuse_unwritable(Path(args.plan))
    store = Store.open(url, "look") if planning else open_cache(url)
    annotations = load_annotations(config.data)
    wanted_of = [purpose for purpose in PURPOSES if purpose in args.of]
    names = {purpose: _subset(config, purpose) for purpose in wanted_of}
    subsets = sorted(set(names.values()))
    loaded = load_subsets(config.data, annotations, subsets, accelerator, store)
    items = dict(zip(subsets, loaded, strict=True))
    wanted, first = [], None
    for config, saved, source in backbones:
        detector = new_detector(
            config, learned_classes(config.data, annotations), [(source, saved)] if saved else []
        )
        every = activations_of(detector.to(accelerator.device).eval(), store, [source])
        for activations, direction in zip(every, config.directions, strict=True):
            spans = [
                span
                for purpose, name in names.items()
                for span in _spans(purpose, items[name], config, direction)
            ]
            wanted.append(Wanted(activations, spans, ("features", *config.cache.blocks)))
        first = first or (detector, every)
    skip = config.data.bad_videos == "skip"
    made = plan(wanted, accelerator, skip)
    if accelerator.is_main_process:
        _tell(made, config, items, names, accelerator.num_processes)
    if planning and "train" in names:
        assert first is not None
        training, validation = (items.get(names.get(p, ""), []) for p in ("train", "validation"))
        _compare(*first, training, validation, accelerator, args.plan)
        if accelerator.is_main_process and len(backbones) > 1:
            print(f"for each of the {len(backbones)} streams alone, which are runs of their own")
    refuse_full_disk(made)
    if planning:
        return
    began = time.monotonic()
    with worker_advice(), memory_advice("sampling.window_size or pixels.size"):
        skipped = refresh(made, accelerator, config.training.workers, skip)
    if accelerator.is_main_process:
        if skipped:
            print(skipped_warning(skipped, sum(map(len, items.values()))))
        took = timedelta(seconds=round(time.monotonic() - began))
        print(f"done in {took}: {store.url} now holds {store.bytes / 1e6:,.1f} MB")


def _config(
    file: str | None, saved: Checkpoint | None, source: str, overrides: list[str]
) -> Experiment:
    if file and saved:
        # One config for several checkpoints: the direction stays each one's own.
        overrides = [f"--direction={saved.config.direction}", *overrides]
    config = config_of(file, saved, source, overrides)
    if saved and len(saved.config.directions) == 1:
        # What its experiment makes of several streams is no matter of one.
        return replace(config, fusion=replace(config.fusion, method="none"))
    return config


def _refuse_different(configs: list[Experiment]) -> None:
    """Raise ValueError unless all take the same frames of the same videos."""
    for part in ("data", "sampling", "pixels", "cache"):
        if any(getattr(config, part) != getattr(configs[0], part) for config in configs):
            raise ValueError(
                f"--checkpoint: the configs differ in '{part}', so they cannot share a decode; run "
                "one at a time"
            )


def _subset(config: Experiment, purpose: str) -> str:
    data = config.data
    names = {
        "train": data.train_subset,
        "validation": data.validation_subset or data.test_subset,
        "test": data.test_subset,
    }
    return names[purpose]


def _spans(purpose: str, items: Items, config: Experiment, direction: Direction) -> list[Span]:
    if purpose == "train":
        return training_spans(items, config, direction)
    sampling = config.sampling
    validates = purpose == "validation"
    overlap = sampling.validation_overlap if validates else sampling.test_overlap
    return evaluation_spans(items, overlap, config, direction)


def _tell(
    made: Plan, config: Experiment, items: dict[str, Items], names: dict[str, str], processes: int
) -> None:
    print(made.headline())
    if "train" in names:
        idle, clips = _not_needed(items[names["train"]], config)
        print(f"  left out: {idle} training videos and {clips:,} clips, which no action needs")
    print(f"  {made.clips:,} clips to encode, {made.frames:,} frames to decode")
    free = made.wanted[0].activations.store.files.free_bytes()
    left = "" if free is None else f"; {free / 1e9:,.1f} GB are free"
    print(f"  {made.bytes / 1e6:,.1f} MB to store, before compression{left}")
    if made.todo:
        seconds = estimate_s(made, config.training.workers) / processes
        print(f"  about {timedelta(seconds=round(seconds))} on {processes} process(es)")


def _compare(
    detector: Detector,
    activations: Sequence[Activations],
    training: Sequence[Item],
    validation: Sequence[Item],
    accelerator: Accelerator,
    file: str,
) -> None:
    """Print what the ways to train on these videos take, and write it, if a file is named."""
    config, main = detector.config, accelerator.is_main_process
    if config.data.validation_subset is None:
        validation = []
    active = [item for item in training if len(item.segments)]
    gone = sum(not item.path.exists() for item in (*training, *validation))
    closed = (
        "no training video has an action"
        if not active
        else f"{gone} videos are gone: train on what is stored"
        if gone
        else "nothing learns in this experiment"
        if not any(p.requires_grad for p in detector.parameters())
        else None
    )
    if closed:
        if main:
            print(f"ways to train are not compared: {closed}")
        return

    def lacks(cut: Cut) -> Filling:
        overlap = config.sampling.validation_overlap
        wanted = [
            Wanted(
                of,
                training_spans(training, config, direction)
                + evaluation_spans(validation, overlap, config, direction),
                (cut,),
            )
            for of, direction in zip(activations, config.directions, strict=True)
        ]
        return filling(plan(wanted, accelerator, skip_gone=True))

    heads = [p for n, p in detector.named_parameters() if ".backbone." not in n]
    features = lacks("features") if any(p.requires_grad for p in heads) else None
    part, k = None, trained_from(config)
    if k is not None:
        cut = with_block(config, k).backbone.learns_behind
        assert cut is not None
        part = k, cut, lacks(cut)
    if not main:
        return
    work = count(config, training, validation, accelerator.num_processes)
    trials = measure(detector, active, accelerator, k)
    files = activations[0].store
    found = compare(
        work,
        trials,
        Place(config.data.videos, shutil.disk_usage(config.data.videos).free),
        Place(str(files.url), files.files.free_bytes()),
        proxy_side(config.pixels),
        features,
        part,
    )
    print(found.table())
    for line in found.advice():
        print(line)
    if file:
        write_text(Path(file), json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")


def _refuse_unwritable(file: Path) -> None:
    """Raise ValueError unless the table's file can be written; said before long trials."""
    if file.suffix != ".json" or not file.parent.is_dir():
        raise ValueError(f"--plan: {file} is no .json file in a folder that is there")


def _not_needed(items: Items, config: Experiment) -> tuple[int, int]:
    """Return how many training videos have no action, and how many clips no training span has."""
    stride = config.sampling.frame_stride
    samples = sum(-(-item.frames // stride) for item in items)
    needed = distinct_frames(training_spans(items, config, config.direction))
    idle = sum(not len(item.segments) for item in items)
    return idle, max(0, samples - needed) // CLIP_FRAMES


if __name__ == "__main__":
    main()
