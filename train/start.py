"""How every run begins and ends: processes, a folder of its own, the detector it starts from."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)
from torch import Tensor

from cache.store import Store
from configs.files import write_text
from configs.load import dump, flatten, load, parse
from evaluate.annotations import Annotations
from evaluate.report import draw_curves
from extract import weights
from extract.activations import Activations
from train.checkpoint import Checkpoint, load_checkpoint
from train.config import Experiment
from train.detector import Detector
from train.items import Item, Items, skipped_warning
from train.log import METRICS, read_metrics
from train.validate import WAIT_FOR_OTHERS

Source = tuple[str, Checkpoint]
"""A checkpoint and its file."""

TRUNK = "backbone.trunk."
SEEN = ("sampling.", "pixels.", "backbone.trunk.", "backbone.mode", "backbone.mean", "backbone.std")
WAIT_FOR_PASSES = timedelta(days=7)  # processes compute different videos' activations


def begin(config: Experiment) -> Accelerator:
    """Return the accelerator of a training run, and seed all random draws.

    Raises:
        ValueError: the machine or accelerate's own settings do not fit the config.
    """
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        # No buffer changes in training, so none needs to be sent around before each step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(
                timeout=WAIT_FOR_PASSES if config.cache.url else WAIT_FOR_OTHERS
            ),
        ],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accumulate with training.accumulate, not with accelerate's own setting")
    refuse_fp16_without_gpu(config, accelerator)
    if config.cache.url and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "--cache: weights that are spread over processes (FSDP) have no fingerprint; leave it "
            "out, and run extract/run.py on the checkpoint afterwards"
        )
    set_seed(config.training.seed)
    return accelerator


def refuse_fp16_without_gpu(config: Experiment, accelerator: Accelerator) -> None:
    """Raise ValueError where fp16 would silently be something else."""
    if config.training.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.precision fp16 needs a GPU; on this machine use bf16 or fp32")


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
) -> None:
    """Write what is decided of a run before it begins, and say it: training videos come first."""
    write_text(out / "config.yaml", dump(detector.config))
    counts = ", ".join(f"{name} {n:,}" for name, n in detector.parameter_counts().items())
    windows = sum(bool(len(item.segments)) for item in subsets[0])
    print(f"{windows} training videos, {len(detector.classes)} classes; weights: {counts}")
    for what, count in annotations.warnings.items():
        print(f"warning: annotations: {what}: {count}")
    skipped = {name: cause for items in subsets for name, cause in items.skipped.items()}
    if skipped:
        print(skipped_warning(skipped, len(skipped) + sum(map(len, subsets))))
    write_text(out / "skipped_videos.json", json.dumps(skipped, indent=1) + "\n")


def leave_curves(out: Path) -> None:
    """Draw a finished run's losses and scores, and say where all that it leaves is."""
    draw_curves(read_metrics(out / METRICS), out / "curves.png")
    print(f"done: {out / 'last.pt'}, {out / METRICS}, {out / 'curves.png'}")


def new_detector(
    config: Experiment, classes: tuple[str, ...], sources: Sequence[Source] = ()
) -> Detector:
    """Return a detector whose streams are from checkpoints, or as pretrained.

    A detector of one stream takes the backbone and has a new head; one of two takes both streams
    whole, and its fusion is new. Without checkpoints the same seed gives the same adapters, which
    the cache can tell.

    Raises:
        ValueError: the weights do not fit, or there are not as many streams as directions.
    """
    set_seed(config.training.seed)
    detector = Detector(config, classes)
    if not sources:
        detector.load_pretrained()
        return detector
    given = [(path, tensors) for path, saved in sources for tensors in _streams(saved)]
    if len(given) != len(detector.streams):
        raise ValueError(
            f"--checkpoint: {len(given)} streams are given, but fusion.method "
            f"{config.fusion.method} needs {len(detector.streams)}; give one checkpoint for each "
            "stream, or set --fusion.method"
        )
    single = len(given) == 1
    for stream, (path, tensors) in zip(detector.streams, given, strict=True):
        own = stream.state_dict()
        # Second adapters begin where the checkpoint has none.
        tensors |= {n: t for n, t in own.items() if ".second." in n and n not in tensors}
        trunk = {n: t for n, t in tensors.items() if n.startswith(TRUNK)}
        if stream is not detector.streams[0] and config.backbone.mode != "full":
            _refuse_other_trunk(own, trunk, path)
        if single:
            tensors = {n: t for n, t in tensors.items() if n.startswith("backbone.")}
            tensors |= {n: t for n, t in own.items() if n.startswith("head.")}
        weights.load_strictly(stream, tensors, path)
    detector.start_fusion()
    return detector


def _streams(saved: Checkpoint) -> list[dict[str, Tensor]]:
    """Return the averaged weights of every stream of a checkpoint."""
    return [
        {
            name.removeprefix(f"streams.{number}."): tensor
            for name, tensor in saved.ema.items()
            if name.startswith(f"streams.{number}.")
        }
        for number, _ in enumerate(saved.config.directions)
    ]


def _refuse_other_trunk(ours: dict[str, Tensor], theirs: dict[str, Tensor], path: str) -> None:
    """Raise ValueError unless a second stream's transformer is the one that both are to share."""
    if any(n in ours and not torch.equal(ours[n].cpu(), t.cpu()) for n, t in theirs.items()):
        raise ValueError(
            f"{path} has another transformer than the first stream's checkpoint; streams share "
            "one, unless backbone.mode is full"
        )


def one_experiment(
    file: str | None, sources: Sequence[Source], overrides: Sequence[str]
) -> Experiment:
    """Return what a run on checkpoints' streams is: the first one's experiment, the file over it.

    Raises:
        ValueError: it cannot be read, or the streams do not see the same.
    """
    if not sources:
        assert file is not None
        return load(Experiment, file, overrides)
    path, first = sources[0]
    for other, saved in sources[1:]:
        ours, theirs = flatten(first.config), flatten(saved.config)
        lines = [
            f"{name} is {ours[name]} and {theirs[name]}"
            for name in ours
            if name.startswith(SEEN) and ours[name] != theirs[name]
        ]
        if lines:
            raise ValueError(
                f"--checkpoint: {path} and {other} do not see the same: {'; '.join(lines)}"
            )
        # What was trained already stays as it is, unless the file or the overrides say otherwise.
        config = first.config
        depth = config.backbone.trunk.depth
        first = first._replace(
            config=replace(
                config,
                head=replace(config.head, learns=False),
                backbone=replace(config.backbone, trainable_from_block=depth),
                fusion=replace(config.fusion, partner=saved.config.direction),
            )
        )
    return config_of(file, first, path, overrides)


def init_from(detector: Detector, path: str | Path) -> None:
    """Start from another run's averaged weights, backbone and head.

    Raises:
        ValueError: they do not fit, or the classes are others.
    """
    other = load_checkpoint(path)
    if other.classes != detector.classes:
        raise ValueError(
            f"--init-from: {path} knows {', '.join(other.classes)}, but the data have "
            f"{', '.join(detector.classes)}"
        )
    weights.load_strictly(detector, other.ema, path)


def config_of(
    file: str | None, saved: Checkpoint | None, source: str, overrides: Sequence[str]
) -> Experiment:
    """Return the experiment of the checkpoint `source`, with that of a YAML file laid over it.

    Raises:
        ValueError: it cannot be read.
    """
    if file is not None:
        return load(Experiment, file, overrides, saved and saved.config)
    assert saved is not None
    return parse(Experiment, dump(saved.config), overrides, source)


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


def with_cache(overrides: list[str], url: str | None) -> list[str]:
    """Return the overrides with what `--cache URL` stands for."""
    return overrides if url is None else [*overrides, f"--cache.url={url}"]


def learning_only(config: Experiment) -> Experiment:
    """Return the config of a run on cached activations: by default only the head learns."""
    if config.backbone.learns_behind is not None:
        return config
    depth = config.backbone.trunk.depth
    return replace(config, backbone=replace(config.backbone, trainable_from_block=depth))
