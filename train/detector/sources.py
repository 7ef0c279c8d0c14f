"""Starting points of runs, with their settings: checkpoints' streams, or pretrained weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor

from configs.loader import dump, load, parse
from extract.checkpoints.hub import locate
from extract.checkpoints.layouts import find_networks
from extract.checkpoints.strict import list_first, load_state_dict_strict
from train.config import Experiment, fused_settings
from train.data.frame_rates import join_ranges
from train.detector.model import Detector
from train.detector.opentad import checkpoint_from_opentad
from train.engine.checkpoint import (
    Checkpoint,
    changed_settings,
    check_kind,
    find_data,
    format_of,
    is_checkpoint,
    load_checkpoint,
)

CheckpointSource = tuple[str, Checkpoint[Experiment]]
"""A checkpoint and its file."""

TRUNK = "backbone.trunk."
SAME_WINDOWS = (
    *("sampling.window_size", "sampling.scale_factor", "sampling.snippet_stride", "sampling.fps"),
    "sampling.method",
)
TAUGHT_SETTINGS = (*SAME_WINDOWS, "head.levels")  # must agree, or both answer at other points
COMPATIBLE_SETTINGS = (  # must agree, or the same weights give other numbers or meanings
    *SAME_WINDOWS,
    *("pixels.size", "backbone.mean", "backbone.std", "backbone.mode"),
    *(
        "pixels.antialias",
        "backbone.trunk.",
        "backbone.network",
        "backbone.tada.",
        "head.heads",
        "head.attention_window",
    ),
)
SAME_NETWORK = (  # must agree, or a mean of weights is no network's
    *COMPATIBLE_SETTINGS,
    *("direction", "fusion.method", "fusion.partner", "fusion.pairing"),
    *("head.width", "head.levels", "head.embed_convs", "head.stem_blocks", "head.tower_convs"),
    *("head.positions", "backbone.adapters_from_block", "backbone.second_from_block"),
)


def build_detector(
    config: Experiment, classes: tuple[str, ...], sources: Sequence[CheckpointSource] = ()
) -> Detector:
    """Return a detector whose streams are from checkpoints, or as pretrained.

    A detector of one stream takes the backbone and has a new head, unless it has a teacher; one of
    two takes both streams whole, and its fusion is new. Without checkpoints the same seed gives the
    same adapters, so that their cached activations are found again.

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
    if not single:
        _check_settings(config, classes, sources)
    for stream, (path, tensors) in zip(detector.streams, given, strict=True):
        own = stream.state_dict()
        # Second adapters begin where the checkpoint has none.
        tensors |= {n: t for n, t in own.items() if ".second." in n and n not in tensors}
        trunk = {n: t for n, t in tensors.items() if n.startswith(TRUNK)}
        if stream is not detector.streams[0] and config.backbone.mode != "full":
            _check_same_trunk(own, trunk, path)
        if single and config.training.teacher is None:
            tensors = {n: t for n, t in tensors.items() if n.startswith("backbone.")}
            tensors |= {n: t for n, t in own.items() if n.startswith("head.")}
        load_state_dict_strict(stream, tensors, path)
    detector.start_fusion()
    detector.frame_rates = join_ranges(saved.frame_rates for _, saved in sources)
    return detector


def load_teacher(path: str, student: Experiment, classes: tuple[str, ...]) -> Detector:
    """Return the detector whose predictions a student learns, in eval mode, not to be trained.

    Args:
        path: its checkpoint.
        student: the experiment of the detector that learns, on cached features; `classes`: its own.

    Raises:
        ValueError: it cannot be read, or does not predict where the student does.
    """
    saved = load_checkpoint(path, Experiment)
    where, theirs = f"training.teacher: {path}", saved.config
    if len(student.directions) > 1:
        raise ValueError(f"{where} teaches one stream; set fusion.method none")
    if student.backbone.last_frozen_cut != "features":
        raise ValueError(
            f"{where} teaches only a head that learns on cached features; set "
            f"backbone.trainable_from_block {student.backbone.depth}"
        )
    if theirs.fusion.method == "segments":
        raise ValueError(
            f"{where} joins both streams' segments and has no scores of its own; give a fusion "
            "of another method, such as average"
        )
    if theirs.direction != student.direction:
        raise ValueError(
            f"{where} answers in {theirs.direction} time, and direction is {student.direction}; "
            "train the stream of its direction"
        )
    _check_classes(path, saved, classes)
    if lines := changed_settings(theirs, student, TAUGHT_SETTINGS):
        raise ValueError(f"{where} was trained on other settings: {'; '.join(lines)}")
    same_store = saved._replace(config=replace(theirs, cache=student.cache))
    return Detector.restore(same_store, path).requires_grad_(False)


def _check_settings(
    config: Experiment, classes: tuple[str, ...], sources: Sequence[CheckpointSource]
) -> None:
    """Raise ValueError unless the checkpoints' settings fit the experiment's."""
    directions = [direction for _, saved in sources for direction in saved.config.directions]
    if tuple(directions) != config.directions:
        raise ValueError(
            f"the checkpoints' streams are {' and '.join(directions)}, but the experiment's are "
            f"{' and '.join(config.directions)}; name them in this order, or set --direction and "
            "--fusion.partner"
        )
    for path, saved in sources:
        _check_classes(path, saved, classes)
        if lines := changed_settings(saved.config, config, COMPATIBLE_SETTINGS):
            raise ValueError(f"{path} was trained on other settings: {'; '.join(lines)}")


def check_same_network(
    path: str, saved: Checkpoint[Experiment], first: Checkpoint[Experiment]
) -> None:
    """Raise ValueError unless a checkpoint's network is that of another one, but for its weights.

    Args:
        path: of `saved`.
    """
    _check_classes(path, saved, first.classes)
    if lines := changed_settings(saved.config, first.config, SAME_NETWORK):
        raise ValueError(f"{path} is another network: {'; '.join(lines)}")
    shapes, others = ({n: t.shape for n, t in c.ema.items()} for c in (first, saved))
    if shapes != others:
        names = sorted(n for n in shapes | others if shapes.get(n) != others.get(n))
        raise ValueError(
            f"{path} is another network: {len(names)} tensors differ ({list_first(names)})"
        )


def _streams(saved: Checkpoint[Experiment]) -> list[dict[str, Tensor]]:
    """Return the averaged weights of every stream of a checkpoint."""
    return [
        {
            name.removeprefix(f"streams.{number}."): tensor
            for name, tensor in saved.ema.items()
            if name.startswith(f"streams.{number}.")
        }
        for number, _ in enumerate(saved.config.directions)
    ]


def _check_same_trunk(ours: dict[str, Tensor], theirs: dict[str, Tensor], path: str) -> None:
    """Raise ValueError unless a second stream's transformer equals the one that both share."""
    if any(n in ours and not torch.equal(ours[n].cpu(), t.cpu()) for n, t in theirs.items()):
        raise ValueError(
            f"{path} has a different transformer from the first stream's checkpoint; streams share "
            "one, unless backbone.mode is full"
        )


def merge_configs(
    file: str | None, sources: Sequence[CheckpointSource], overrides: Sequence[str]
) -> Experiment:
    """Return the experiment of a run on checkpoints' streams: the first one's, updated by the file.

    For checkpoints without settings of their own, the file is the experiment that they come from.

    Raises:
        ValueError: it cannot be read.
    """
    if not sources:
        assert file is not None
        return load(Experiment, file, overrides)
    path, first = sources[0]
    if file is not None and not all(is_checkpoint(path, Experiment) for path, _ in sources):
        first, file = first._replace(config=load(Experiment, file, overrides)), None
    others = [saved.config for _, saved in sources[1:]]
    first = first._replace(config=fused_settings([first.config, *others]))
    config = resolve_config(file, first, path, overrides)
    return find_data(config, first, path, needs_videos=False)


def read_sources(
    paths: Sequence[str], file: str | Path | None, overrides: Sequence[str]
) -> list[CheckpointSource]:
    """Return checkpoints; other projects' are the experiment's streams, in their order."""
    return [(path, read_source(path, file, overrides, number)) for number, path in enumerate(paths)]


def read_source(
    path: str | Path, file: str | Path | None, overrides: Sequence[str] = (), number: int = 0
) -> Checkpoint[Experiment]:
    """Return a checkpoint of this project or of another one.

    Args:
        file: YAML file of the whole experiment that another project's detector comes from.
        overrides: of its settings.
        number: which of that experiment's streams the detector is.

    Raises:
        ValueError: it cannot be read, or does not fit the experiment.
    """
    if is_checkpoint(path, Experiment) or not locate(path).exists():
        return load_checkpoint(path, Experiment)
    check_kind(path, format_of(path))
    networks = find_networks(path)
    if file is None:
        raise ValueError(
            f"{path} has the layout '{networks[0].layout}', which has no settings: add --config "
            "with the whole experiment that it comes from; OpenTAD's detectors need "
            "pixels.antialias false"
        )
    return checkpoint_from_opentad(networks[0], load(Experiment, file, overrides), path, number)


def init_from_checkpoint(detector: Detector, path: str | Path) -> None:
    """Load another run's averaged weights, backbone and head.

    Raises:
        ValueError: they do not fit, or the classes differ.
    """
    if is_checkpoint(path, Experiment):
        other = load_checkpoint(path, Experiment)
    else:
        other = checkpoint_from_opentad(find_networks(path)[0], detector.config, path)
    _check_classes(path, other, detector.classes)
    if other.config.backbone.mode == "imported":
        _load_heads(detector, other, path)
        return
    load_state_dict_strict(detector, other.ema, path)
    detector.coverage = None  # the pretrained weights were replaced


def _load_heads(detector: Detector, other: Checkpoint[Experiment], path: str | Path) -> None:
    """Load the head that was trained on imported features; the backbone stays as pretrained."""
    head = {
        name.removeprefix("streams.0.head."): tensor
        for name, tensor in other.ema.items()
        if name.startswith("streams.0.head.")
    }
    for stream in detector.streams:
        load_state_dict_strict(stream.head, head, path)


def resolve_config(
    file: str | Path | None,
    saved: Checkpoint[Experiment] | None,
    source: str,
    overrides: Sequence[str],
) -> Experiment:
    """Return the experiment of the checkpoint `source`, updated by a YAML file and overrides.

    Raises:
        ValueError: it cannot be read.
    """
    if file is not None:
        return load(Experiment, file, overrides, saved and saved.config)
    assert saved is not None
    return parse(Experiment, dump(saved.config), overrides, source)


def _check_classes(
    path: str | Path, saved: Checkpoint[Experiment], classes: tuple[str, ...]
) -> None:
    if saved.classes != classes:
        raise ValueError(
            f"{path} has classes {', '.join(saved.classes)}, but the data have {', '.join(classes)}"
        )
