"""Bring a cache of activations up to date with checkpoints.

    python extract/run.py --checkpoint runs/demo/forward/best.pt --cache URL [--plan [FILE.json]]
    accelerate launch extract/run.py --checkpoint FORWARD.pt REVERSED.pt --cache URL --of test
    python extract/run.py --config FILE --cache URL       # of the pretrained backbone
    python extract/run.py --checkpoint FILE --cache URL --on slurm --shares 20 \
        --resources gpus_per_node=1 timeout_min=240 slurm_partition=gpu

Prints first what it will do and what that costs. --plan stops there, with a table of the ways to
train: on the videos, decoded frames or activations; bytes, hours, what each gives up. Checkpoints
of both directions share one decode. What is there already is not computed again, so the command of
an interrupted run goes on with it.

--share I/N does the I-th of N equal parts of the videos. The jobs need not know of each other; what
a lost one leaves, the next run makes, in shares or whole. --on submits them as an array (submitit:
slurm, or processes of this machine) and waits.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, get_args

from configs import cli
from configs.atomic import write_text
from configs.loader import find_script
from configs.messages import format_bytes, format_count
from configs.options import ScriptParser
from extract.parallel.jobs import ENGINES, parse_resources
from extract.parallel.shares import Share, submit_shares, without_options
from extract.settings.sampling import Direction, SamplingConfig, SpanKind
from extract.settings.units import CLIP_FRAMES
from train.config import DataConfig, Experiment, with_cache

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from cache.store import Store
    from extract.activations.activations import Activations
    from extract.activations.plan import Plan, SpanRequest
    from extract.sampling.spans import Span
    from train.data.items import Subset, VideoItem
    from train.detector.model import Detector
    from train.engine.checkpoint import Checkpoint

PURPOSES = ("train", "validation", "test")
DECIDE_FRAMES = (  # beginnings of settings that decide which frames of which videos are encoded
    *("data.annotations", "data.videos", "data.classes", "data.info_csv", "data.blocked"),
    *("data.train_subset", "data.validation_subset", "data.test_subset", "data.min_share"),
    *("sampling.", "pixels.", "cache.url", "cache.dtype", "cache.span"),
)


def main() -> None:
    parser = ScriptParser(__doc__, Experiment)
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
        help="print what would be done, compare ways to train, and stop; the file gets the table",
    )
    parser.add_argument(
        "--share",
        metavar="I/N",
        help="only the I-th of N shares of the videos",
    )
    parser.add_argument(
        "--on", choices=ENGINES, help="run the shares as jobs of a cluster, or side by side here"
    )
    parser.add_argument("--shares", type=int, metavar="N", help="how many --on makes; default: 2")
    parser.add_argument(
        "--resources",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="what each job of --on gets",
    )
    args, overrides = parser.parse()
    if not (args.checkpoint or args.config):
        parser.error("give --checkpoint, --config or both")
    if args.on:
        if args.share or args.plan is not None:
            parser.error("--on makes the shares itself and computes: leave out --share and --plan")
        shares = 2 if args.shares is None else args.shares
        if shares < 1:
            parser.error("--shares: give 1 or more")
        resources = parse_resources(args.resources)
        words = without_options(sys.argv[1:], {"--on": 1, "--shares": 1, "--resources": None})
        command = [*find_script("extract/run.py"), *words]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # local jobs must not outlive us
        submit_shares(args.on, shares, resources, Path("runs/jobs"), command)
        return
    if args.resources or args.shares is not None:
        parser.error("--shares and --resources are for jobs; add --on, or give --share I/N")
    plan_and_compute(
        args.checkpoint,
        args.config,
        with_cache(overrides, args.cache),
        args.of,
        args.directions,
        args.plan,
        Share.parse(args.share) if args.share else None,
    )


def plan_and_compute(
    checkpoints: Sequence[str],
    config_file: str | None,
    overrides: list[str],
    purposes: Sequence[str],
    directions: Sequence[Direction] | None,
    plan_file: str | None,
    share: Share | None = None,
) -> None:
    """Print what is missing and what it costs, then compute it.

    Args:
        config_file: needed where there are no checkpoints.
        directions: None takes each config's own.
        plan_file: None computes; else only the plan is made, and "" writes no file.
        share: of the videos, looked at and computed; None takes all.
    """
    from cache.store import Store, open_cache
    from extract.activations.plan import check_disk_space, plan
    from train.data.truth import load_annotations, target_classes
    from train.data.videos import load_subsets
    from train.detector.setup import check_has_pixels
    from train.engine.session import check_fp16_has_gpu, inference_accelerator

    backbones = _read_backbones(checkpoints, config_file, overrides, directions)
    config = backbones[0].config
    check_has_pixels(config.backbone)
    if directions and any(len(each.config.directions) > 1 for each in backbones):
        raise ValueError("--directions: a detector of two streams has its own; leave it out")
    check_shared_decode([each.config for each in backbones])
    if not config.cache.url:
        raise ValueError("--cache: give the store that activations are stored in")
    accelerator = inference_accelerator(config)
    check_fp16_has_gpu(config, accelerator)
    url, planning = config.cache.url, plan_file is not None
    if plan_file:
        _check_writable(Path(plan_file), purposes)
    store = Store.open(url, "inspect") if planning else open_cache(url)
    annotations = mine = load_annotations(config.data)
    names = {each: _subset(config.data, each) for each in PURPOSES if each in purposes}
    if share is not None:
        videos = {name: annotations.videos[name] for name in share.of(annotations.videos)}
        mine = replace(annotations, videos=videos)
        some = {video.subset for video in videos.values()}
        names = {purpose: name for purpose, name in names.items() if name in some}
        if not names:
            if accelerator.is_main_process:
                print(f"share {share.number}/{share.count}: it has none of the videos")
            return
    subsets, part = sorted(set(names.values())), share is not None
    fps = config.sampling.fps
    loaded = load_subsets(
        config.data, mine, subsets, accelerator, store, sampling_fps=fps, part=part
    )
    items = dict(zip(subsets, loaded, strict=True))
    classes = target_classes(config.data, annotations)
    built = [_build(each, classes, accelerator.device, store) for each in backbones]
    wanted = [
        request
        for detector, every in built
        for request in _span_requests(detector.config, every, items, names)
    ]
    skip = config.data.bad_videos == "skip"
    made = plan(wanted, accelerator, skip)
    if accelerator.is_main_process:
        _print_plan(made, config, items, names, accelerator.num_processes)
    if plan_file is not None and "train" in names:
        validates = "validation" in names and config.data.validation_subset is not None
        validation = items[names["validation"]] if validates else []
        _print_routes(*built[0], items[names["train"]], validation, accelerator, plan_file)
        if accelerator.is_main_process and len(backbones) > 1:
            print(f"for each of the {len(backbones)} streams alone, which are runs of their own")
    check_disk_space(made)
    if not planning:
        _compute(made, store, accelerator, config.training.workers, skip, sum(map(len, loaded)))


class _Source(NamedTuple):
    """What a backbone is built from; without a checkpoint, its initial weights."""

    config: Experiment
    checkpoint: Checkpoint[Experiment] | None
    file: str


def _read_backbones(
    checkpoints: Sequence[str],
    config_file: str | None,
    overrides: list[str],
    directions: Sequence[Direction] | None,
) -> list[_Source]:
    """Return what is to be computed: each checkpoint, or else the config, in each direction."""
    from train.detector.sources import read_sources

    sources: list[tuple[str, Checkpoint[Experiment] | None]] = [(config_file or "", None)]
    if checkpoints:
        sources = [*read_sources(checkpoints, config_file, overrides)]
    return [
        _Source(replace(config, direction=direction), saved, file)
        for file, saved in sources
        for config in [_resolve(config_file, saved, file, overrides)]
        for direction in directions or [config.direction]
    ]


def _build(
    source: _Source, classes: tuple[str, ...], device: torch.device, store: Store
) -> tuple[Detector, Sequence[Activations]]:
    """Return a detector on the device, and the stored activations of its streams."""
    from extract.backbone.frozen import hold_frozen
    from train.detector.setup import activations_of
    from train.detector.sources import build_detector

    config, checkpoint, file = source
    detector = build_detector(config, classes, [(file, checkpoint)] if checkpoint else [])
    detector = detector.to(device).eval()
    hold_frozen(detector, config.training.precision, config.pixels.size)
    return detector, activations_of(detector, store, [file])


def _span_requests(
    config: Experiment,
    every: Sequence[Activations],
    items: Mapping[str, Subset[VideoItem]],
    names: Mapping[str, str],
) -> Iterator[SpanRequest]:
    """Yield what each stream needs.

    Args:
        every: activations of each stream.
        items: by the names of the subsets; `names`: those of the purposes.
    """
    from extract.activations.plan import SpanRequest

    for activations, direction in zip(every, config.directions, strict=True):
        of = config.sampling, direction, config.cache.span
        spans = [
            span
            for purpose, name in names.items()
            for span in _select_spans(purpose, items[name], *of)
        ]
        yield SpanRequest(activations, spans, ("features", *config.cache.blocks))


def _compute(
    made: Plan, store: Store, accelerator: Accelerator, workers: int, skip: bool, videos: int
) -> None:
    """Make the passes of a plan, and print what has come of it.

    Raises:
        OSError: a store could not take all of it.
    """
    from extract.activations.refresh import describe_unkept, refresh
    from train.data.items import format_skipped
    from train.errors import translate_oom, translate_worker_death

    began = time.monotonic()
    with translate_worker_death(), translate_oom("lower sampling.window_size or pixels.size"):
        skipped = refresh(made, accelerator, workers, skip)
    unkept = describe_unkept([request.activations for request in made.wanted], accelerator)
    if accelerator.is_main_process:
        if skipped:
            print(format_skipped(skipped, videos))
        took = timedelta(seconds=round(time.monotonic() - began))
        print(f"done in {took}: {store.url} now holds {format_bytes(store.bytes)}")
    if unkept:
        raise OSError(f"{unkept}; the same command makes them")


def _resolve(
    file: str | None, saved: Checkpoint[Experiment] | None, source: str, overrides: list[str]
) -> Experiment:
    from train.detector.sources import resolve_config
    from train.engine.checkpoint import find_data

    if file and saved:
        # One config for several checkpoints: the direction stays each one's own.
        overrides = [f"--direction={saved.config.direction}", *overrides]
    config = resolve_config(file, saved, source, overrides)
    if saved:
        config = find_data(config, saved, source, needs_videos=True)
    if saved and len(saved.config.directions) == 1:
        # What its experiment makes of several streams is no matter of one.
        return replace(config, fusion=replace(config.fusion, method="none"))
    return config


def check_shared_decode(configs: Sequence[Experiment]) -> None:
    """Raise ValueError, with the settings that differ, unless all take the same frames."""
    from train.engine.checkpoint import changed_settings

    for config in configs[1:]:
        if lines := changed_settings(configs[0], config, DECIDE_FRAMES):
            raise ValueError(
                f"--checkpoint: the configs differ, so they cannot share a decode ("
                f"{'; '.join(lines)}): run one at a time, or set what shall hold for all"
            )


def _subset(data: DataConfig, purpose: str) -> str:
    names = {
        "train": data.train_subset,
        "validation": data.validation_subset or data.test_subset,
        "test": data.test_subset,
    }
    return names[purpose]


def _select_spans(
    purpose: str,
    items: Subset[VideoItem],
    sampling: SamplingConfig,
    direction: Direction,
    kind: SpanKind,
) -> list[Span]:
    """Return the spans of a subset's videos; of training, those of the kind that is trained on."""
    from train.data.cached import evaluation_spans, training_spans

    if purpose == "train":
        return training_spans(items, sampling, direction, kind)
    validates = purpose == "validation"
    overlap = sampling.validation_overlap if validates else sampling.test_overlap
    return evaluation_spans(items, overlap, sampling, direction)


def _print_plan(
    made: Plan,
    config: Experiment,
    items: dict[str, Subset[VideoItem]],
    names: dict[str, str],
    processes: int,
) -> None:
    from extract.activations.plan import estimate_s
    from train.data.items import count_listed, format_skipped, skipped_of

    print(made.headline())
    if left_out := skipped_of(items.values()):
        print(format_skipped(left_out, count_listed(items.values())))
    if "train" in names:
        of = config.sampling, config.direction, config.cache.span
        idle, clips = _count_unneeded(items[names["train"]], *of)
        told = f"{format_count(idle, 'training video')} and {format_count(clips, 'clip')}"
        print(f"  left out: {told}, which no action needs")
    print(f"  {made.clips:,} clips to encode, {made.frames:,} frames to decode")
    free = made.wanted[0].activations.store.files.free_bytes()
    left = "" if free is None else f"; {format_bytes(free)} are free"
    print(f"  {format_bytes(made.bytes)} to store, before compression{left}")
    if made.todo:
        seconds = estimate_s(made, config.training.workers) / processes
        shared = format_count(processes, "process", "processes")
        print(f"  about {timedelta(seconds=round(seconds))} on {shared}")


def _print_routes(
    detector: Detector,
    activations: Sequence[Activations],
    training: Sequence[VideoItem],
    validation: Sequence[VideoItem],
    accelerator: Accelerator,
    file: str,
) -> None:
    """Print what the ways to train on these videos take; write it to the file, if one is named."""
    from extract.parallel.processes import broadcast_object
    from train.cost.routes import measure_routes, reason_not_to_compare

    # Decided by one process for all: folders of several machines may not show the same files.
    why_not = broadcast_object(reason_not_to_compare(detector, training, validation))
    if why_not:
        if accelerator.is_main_process:
            print(f"ways to train are not compared: {why_not}")
        return
    found = measure_routes(detector, activations, training, validation, accelerator)
    if found is None:
        return
    print(found.text())
    if file:
        write_text(Path(file), json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")


def _check_writable(file: Path, purposes: Sequence[str]) -> None:
    """Raise ValueError unless ways to train will be compared and the file can be written."""
    if "train" not in purposes:
        raise ValueError(f"--plan: {file} would get the ways to train; add train to --of")
    if file.suffix != ".json" or not file.parent.is_dir():
        raise ValueError(f"--plan: {file} is not a .json file in an existing folder")


def _count_unneeded(
    items: Subset[VideoItem], sampling: SamplingConfig, direction: Direction, kind: SpanKind
) -> tuple[int, int]:
    """Return how many training videos have no action, and how many clips no training span has."""
    from extract.activations.plan import distinct_frames
    from extract.sampling.windows import samples_of
    from train.data.cached import training_spans

    samples = sum(len(samples_of(item, sampling)) for item in items)
    needed = distinct_frames(training_spans(items, sampling, direction, kind))
    idle = sum(not len(item.segments) for item in items)
    return idle, max(0, samples - needed) // CLIP_FRAMES


if __name__ == "__main__":
    cli.run(main, "what was computed is kept, and the same command goes on")
