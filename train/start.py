"""How every run begins and ends: processes, a folder of its own, its cache, its record."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)

from cache.store import Store
from configs.files import write_text
from configs.load import dump
from evaluate.annotations import Annotations
from evaluate.report import draw_curves
from extract.activations import Activations
from extract.frames import FrameCache
from extract.strict import Coverage
from extract.transforms import evaluation_transform, train_transform
from train.config import Experiment, Trained
from train.detector import Detector
from train.items import Item, Items, skipped_warning
from train.log import METRICS, read_metrics
from train.validate import WAIT_FOR_OTHERS

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
) -> None:
    """Write what is decided of a run before it begins, and say it: training videos come first."""
    write_text(out / "config.yaml", dump(detector.config))
    counts = ", ".join(f"{name} {n:,}" for name, n in detector.parameter_counts().items())
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


def _record_weights(path: Path, detector: Detector, coverage: Coverage) -> None:
    """Write, and say, what pretrained weights a run begins with and which tensors are new."""
    new = [name for name, _ in detector.named_parameters() if ".backbone.trunk." not in name]
    write_text(path, json.dumps(coverage.record() | {"new": new}, indent=1) + "\n")
    print(f"{coverage.source}: {coverage}; {len(new)} tensors are new")


def leave_curves(
    out: Path,
    losses: Sequence[str] = ("classification", "regression"),
    measure: str = "average_mAP",
) -> None:
    """Draw a finished run's losses and scores, and say where all that it leaves is.

    Args:
        losses: their names in the metrics; `measure`: the score's.
    """
    draw_curves(read_metrics(out / METRICS), out / "curves.png", losses, measure)
    print(f"done: {out / 'last.pt'}, {out / METRICS}, {out / 'curves.png'}")


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
