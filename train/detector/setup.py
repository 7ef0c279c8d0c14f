"""Setup of a detector's run: data, checks, record, caches."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from cache.store import Store
from configs.atomic import write_text
from configs.loader import dump
from evaluate.annotations import Annotations
from extract.activations.activations import Activations
from extract.checkpoints.hub import is_on_hub
from extract.checkpoints.strict import Coverage
from extract.sampling.frame_cache import FrameCache
from extract.sampling.transforms import evaluation_transform, train_transform
from extract.settings.backbone import BackboneConfig
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from train.config import DataConfig
from train.data.items import Subset, VideoItem, count_listed, format_skipped, skipped_of
from train.data.truth import load_annotations, target_classes
from train.data.videos import load_subsets
from train.detector.model import Detector


def check_has_pixels(backbone: BackboneConfig) -> None:
    """Raise ValueError if the backbone reads no pixels."""
    if backbone.mode == "imported":
        raise ValueError(
            "backbone.mode imported: features come from elsewhere, and nothing is computed from "
            "pixels; train on them with train/heads.py"
        )


class TrainingData(NamedTuple):
    """The videos that a detector is trained on, and those that it is validated with, if any.

    Attributes:
        annotations: with their warnings.
        classes: of the detector, in the order of the logits.
    """

    annotations: Annotations
    classes: tuple[str, ...]
    training: Subset[VideoItem]
    validation: Subset[VideoItem] | None

    @property
    def subsets(self) -> list[Subset[VideoItem]]:
        """Training and, if there is one, validation."""
        return [self.training] if self.validation is None else [self.training, self.validation]


def load_training_data(
    data: DataConfig,
    accelerator: Accelerator,
    store: Store | None,
    sampling_fps: float | None,
    needs_files: bool = False,
    imported: str | None = None,
) -> TrainingData:
    """Read the annotations and match both subsets with their files; see `load_subsets`.

    Raises:
        ValueError: annotations or files are missing or malformed, or there are videos to validate
            with, but no action in them.
    """
    annotations = load_annotations(data)
    name = data.validation_subset
    names = [data.train_subset, *([name] if name else [])]
    training, *others = load_subsets(
        data, annotations, names, accelerator, store, needs_files, imported, sampling_fps
    )
    validation = others[0] if others else None
    if validation is not None and not any(item.truth for item in validation):
        raise ValueError(
            f"no video of subset '{name}' has an action, so nothing can be validated; set "
            "data.validation_subset to another one or to null"
        )
    return TrainingData(annotations, target_classes(data, annotations), training, validation)


def write_detector_record(out: Path, detector: Detector, data: TrainingData) -> dict[str, Any]:
    """Write and print the facts that are fixed before a run begins.

    Returns:
        Those for its report (`Notes.about`).
    """
    write_text(out / "config.yaml", dump(detector.config))
    weights = detector.count_parameters()
    counts = ", ".join(f"{name} {n:,}" for name, n in weights.items())
    windows = sum(bool(len(item.segments)) for item in data.training)
    print(f"{windows} training videos, {len(detector.classes)} classes; weights: {counts}")
    if detector.coverage is not None:
        _record_weights(out / "weights.json", detector, detector.coverage)
    for what, count in data.annotations.warnings.items():
        print(f"warning: annotations: {what}: {count}")
    skipped = skipped_of(data.subsets)
    if skipped:
        print(format_skipped(skipped, count_listed(data.subsets)))
    write_text(out / "skipped_videos.json", json.dumps(skipped, indent=1) + "\n")
    return {"training videos": windows, "classes": len(detector.classes), "weights": weights}


def _record_weights(path: Path, detector: Detector, coverage: Coverage) -> None:
    """Write and print which pretrained weights a run begins with, and which tensors are new."""
    new = [name for name, _ in detector.named_parameters() if ".backbone.trunk." not in name]
    write_text(path, json.dumps(coverage.to_dict() | {"new": new}, indent=1) + "\n")
    print(f"{coverage.source}: {coverage}; {len(new)} tensors are new")


def activations_of(
    detector: Detector, store: Store, origins: Sequence[str | Path]
) -> tuple[Activations, ...]:
    """Return the activations of every stream's backbone as the detector's config has them.

    Args:
        origins: files that the weights are from, for lists of the store's contents: one for every
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
            # Absolute: it is opened again from other folders.
            str(origin) if is_on_hub(origin) else str(Path(origin).resolve()),
        )
        for stream, origin in zip(detector.streams, origins, strict=True)
    )


def open_frame_cache(
    data: DataConfig,
    sampling: SamplingConfig,
    pixels: PixelConfig,
    training: Sequence[VideoItem],
    validation: Sequence[VideoItem] | None,
    accelerator: Accelerator,
) -> FrameCache | None:
    """Return the cache of a run's frames, if it has one, and print the space it will need.

    Raises:
        ValueError: the folder cannot be made.
    """
    if data.frame_cache is None:
        return None
    folder = Path(data.frame_cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"data.frame_cache: cannot make the folder {folder}: {error.strerror}; choose another"
        ) from error
    cache = FrameCache(folder, sampling, data.frame_cache_gb)
    if accelerator.is_main_process:
        cache.tidy()
        learned = [item for item in training if len(item.segments)]
        test, train = evaluation_transform(pixels), train_transform(pixels)
        print(
            cache.forecast(
                (item.path, item.info, transform.shrink)
                for items, transform in ((learned, train), (validation or (), test))
                for item in items
            )
        )
    return cache


def freeze_by_default(backbone: BackboneConfig) -> BackboneConfig:
    """Return the backbone settings of a run on cached activations: by default only the head learns.

    Raises:
        ValueError: no cut in front of what learns could be cached.
    """
    if backbone.last_frozen_cut is not None:
        return backbone
    if backbone.second_from_block is not None:
        raise ValueError(
            "backbone.second_from_block 0 trains an adapter in front of all that could be cached; "
            "train it with train/e2e.py, or choose a later block"
        )
    return replace(backbone, trainable_from_block=backbone.depth)
