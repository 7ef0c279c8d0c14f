"""How every run begins and ends: processes, a folder of its own, its cache, its record."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)

from cache.store import Store
from configs.atomic import write_text
from configs.loader import dump
from evaluate.annotations import Annotations
from evaluate.reports.launches import (
    FINISHED,
    INTERRUPTED,
    new_launch,
    read_launches,
    write_launches,
)
from evaluate.reports.page import REPORT
from evaluate.reports.training import leave_report
from extract.activations.activations import Activations, Counts
from extract.checkpoints.strict import Coverage
from extract.sampling.frame_cache import FrameCache
from extract.sampling.transforms import evaluation_transform, train_transform
from train.config import Experiment, Trained
from train.data.videos import Item, Items, skipped_warning
from train.detector.evaluation import WAIT_FOR_OTHERS
from train.detector.model import Detector
from train.engine.stopwatch import Stopwatch
from train.errors import message

PASSES = "passes"  # the stage in which the cache is brought up to date
WAIT_FOR_PASSES = timedelta(days=7)  # processes compute different videos' activations


def begin(config: Trained, cached: bool = False) -> Accelerator:
    """Return the accelerator of a training run, and seed all random draws.

    Args:
        cached: whether it begins with passes that are kept in a store.

    Raises:
        ValueError: the machine or accelerate's own settings do not fit the config.
    """
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        # Buffers of batch norms are averaged after each epoch; none need be sent before each step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=WAIT_FOR_PASSES if cached else WAIT_FOR_OTHERS),
        ],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accumulate with training.accumulate, not with accelerate's own setting")
    refuse_fp16_without_gpu(config, accelerator)
    if cached and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "--cache: weights that are spread over processes (FSDP) have no fingerprint; leave it "
            "out, and run extract/run.py on the checkpoint afterwards"
        )
    set_seed(config.training.seed)
    return accelerator


def refuse_fp16_without_gpu(config: Trained, accelerator: Accelerator) -> None:
    """Raise ValueError where fp16 would silently be something else."""
    if config.training.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.precision fp16 needs a GPU; on this machine use bf16 or fp32")


def refuse_imported(config: Experiment) -> None:
    """Raise ValueError where pixels are needed, but there are none."""
    if config.backbone.mode == "imported":
        raise ValueError(
            "backbone.mode imported: features come from elsewhere, and nothing is computed from "
            "pixels; train on them with train/heads.py"
        )


def has_begun(out: Path, resume: bool) -> bool:
    """Say whether the folder holds a run to go on with; the same on all processes.

    Raises:
        ValueError: it holds one, but `resume` is not wanted; or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; choose a folder")
    # Decided by one process for all: folders of several machines may not show the same files.
    (begun,) = broadcast_object_list([(out / "last.pt").exists()])
    if begun and not resume:
        raise ValueError(f"{out} holds a run already; add --resume, or choose another --out")
    return bool(begun)


def refuse_unlabelled(validation: list[Item] | None, subset: str | None) -> None:
    """Raise ValueError if there are videos to validate with, but no action in them."""
    if validation is not None and not any(item.truth for item in validation):
        raise ValueError(
            f"no video of subset '{subset}' has an action, so nothing can be validated; set "
            "data.validation_subset to another one or to null"
        )


def leave_record(
    out: Path, detector: Detector, subsets: Sequence[Items], annotations: Annotations
) -> dict[str, Any]:
    """Write what is decided of a run before it begins, and say it: training videos come first.

    Returns:
        What its report tells of it (`Notes.about`).
    """
    write_text(out / "config.yaml", dump(detector.config))
    weights = detector.parameter_counts()
    counts = ", ".join(f"{name} {n:,}" for name, n in weights.items())
    windows = sum(bool(len(item.segments)) for item in subsets[0])
    print(f"{windows} training videos, {len(detector.classes)} classes; weights: {counts}")
    if detector.coverage is not None:
        _record_weights(out / "weights.json", detector, detector.coverage)
    for what, count in annotations.warnings.items():
        print(f"warning: annotations: {what}: {count}")
    skipped = {name: cause for items in subsets for name, cause in items.skipped.items()}
    if skipped:
        print(skipped_warning(skipped, len(skipped) + sum(map(len, subsets))))
    write_text(out / "skipped_videos.json", json.dumps(skipped, indent=1) + "\n")
    return {"training videos": windows, "classes": len(detector.classes), "weights": weights}


def _record_weights(path: Path, detector: Detector, coverage: Coverage) -> None:
    """Write, and say, what pretrained weights a run begins with and which tensors are new."""
    new = [name for name, _ in detector.named_parameters() if ".backbone.trunk." not in name]
    write_text(path, json.dumps(coverage.record() | {"new": new}, indent=1) + "\n")
    print(f"{coverage.source}: {coverage}; {len(new)} tensors are new")


@dataclass
class Notes:
    """What is to stand in a run's report: what it works on, and how activations came about."""

    about: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, Counts] = field(default_factory=dict)


@contextmanager
def reported(out: Path, accelerator: Accelerator, watch: Stopwatch, begun: bool) -> Iterator[Notes]:
    """Keep a record of this launch in the run's folder, and leave a report, however it ends.

    All processes enter. What cannot be written costs a warning, not the run.

    Args:
        begun: whether launches before this one belong to the run.
    """
    notes = Notes()
    devices = device_names(accelerator)
    if not accelerator.is_main_process:
        yield notes
        return
    before = read_launches(out) if begun else []
    launch = new_launch(accelerator.num_processes, devices)
    write_launches(out, [*before, launch])
    outcome = FINISHED
    try:
        yield notes
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        outcome = INTERRUPTED if interrupted else message(error).replace("error", "failed", 1)
        raise
    finally:
        counts = {when: [c.hits, c.partial, c.full] for when, c in notes.activations.items()}
        launch = replace(
            launch,
            outcome=outcome,
            seconds=watch.seconds(),
            about=notes.about,
            activations={when: numbers for when, numbers in counts.items() if any(numbers)},
        )
        try:
            write_launches(out, [*before, launch])
            leave_report(out)
            print(f"{outcome}; report: {out / REPORT}")
        except (OSError, ValueError) as error:
            print(f"warning: {out} has no report of this: {error}")


def device_names(accelerator: Accelerator) -> list[str]:
    """Return what every process runs on; all processes ask together."""
    device = accelerator.device
    cores = f"{device.type.upper()}, {os.cpu_count()} cores"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    names: list[str] = gather_object([name])
    return names


def activations_of(
    detector: Detector, store: Store, origins: Sequence[str | Path]
) -> tuple[Activations, ...]:
    """Return the activations of every stream's backbone as the detector's config has them.

    Args:
        origins: files that the weights are from, for people who look at the store: one for every
            stream, or one for all.
    """
    config, count = detector.config, len(detector.streams)
    origins = origins if len(origins) == count else [origins[0]] * count
    return tuple(
        Activations(
            store,
            stream.backbone,
            config.pixels,
            config.training.precision,
            config.cache,
            # Whole: it is looked for again from other folders.
            str(Path(origin).resolve()),
        )
        for stream, origin in zip(detector.streams, origins, strict=True)
    )


def open_cache(url: str) -> Store:
    """Open a store for writing, or make one.

    Raises:
        ValueError: that is impossible there.
    """
    try:
        return Store.open(url, "a")
    except OSError as error:
        raise ValueError(
            f"--cache: cannot keep activations in {url}: {error.strerror or error}; choose a "
            "folder that can be written"
        ) from error


def open_frame_cache(
    config: Experiment,
    training: Sequence[Item],
    validation: Sequence[Item],
    accelerator: Accelerator,
) -> FrameCache | None:
    """Return where a run keeps its videos' frames, if it does, and say what they will take.

    Raises:
        ValueError: there can be no such folder.
    """
    if config.data.frame_cache is None:
        return None
    folder = Path(config.data.frame_cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"data.frame_cache: cannot make the folder {folder}: {error.strerror}; choose another"
        ) from error
    kept = FrameCache(folder, config.sampling, config.data.frame_cache_gb)
    if accelerator.is_main_process:
        kept.tidy()
        learned = [item for item in training if len(item.segments)]
        test, train = evaluation_transform(config.pixels), train_transform(config.pixels)
        print(
            kept.forecast(
                (item.path, item.info, transform.shrink)
                for items, transform in ((learned, train), (validation, test))
                for item in items
            )
        )
    return kept


def with_cache(overrides: list[str], url: str | None) -> list[str]:
    """Return the overrides with what `--cache URL` stands for."""
    return overrides if url is None else [*overrides, f"--cache.url={url}"]


def learning_only(config: Experiment) -> Experiment:
    """Return the config of a run on cached activations: by default only the head learns.

    Raises:
        ValueError: what learns stands behind nothing that could be cached.
    """
    if config.backbone.learns_behind is not None:
        return config
    if config.backbone.second_from_block is not None:
        raise ValueError(
            "backbone.second_from_block 0 trains an adapter in front of all that could be cached; "
            "train it with train/e2e.py, or choose a later block"
        )
    depth = config.backbone.depth
    return replace(config, backbone=replace(config.backbone, trainable_from_block=depth))
