"""Checkpoints: one file that a run can resume from and a detector can be built from."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
import yaml
from torch import Tensor

from configs.atomic import atomic_path
from configs.loader import dump, flatten, parse
from extract.checkpoints.beside import FIELD, SHARED_FILES, join_shared, name_shared
from extract.checkpoints.hub import locate
from extract.checkpoints.strict import check_finite, find_not_finite, list_first
from extract.checkpoints.wrappers import unwrap

# Kinds of files by format, for messages of the wrong script.
KINDS = {
    "palindrome-2": "a detector's checkpoint; evaluate/run.py is for those",
    "palindrome-recogniser-1": (
        "an action recogniser's checkpoint; evaluate/recognise.py is for those"
    ),
}
DATA_FILES = ("data.annotations", "data.classes", "data.info_csv", "evaluation.video_scores")
VIDEOS = "data.videos"
FREE_TO_CHANGE = {  # settings that do not change what is trained
    "out",
    "cache.url",
    "cache.blocks",
    "cache.flush_s",
    "backbone.recompute",
    "data.bad_videos",
    "data.frame_cache",
    "data.frame_cache_gb",
    "training.stop_epoch",
    "training.trackers",
    "training.validate_every",
    "training.validate_from",
    "training.workers",
    "evaluation.batch_size",
}


class Shared(NamedTuple):
    """The file beside checkpoints that has what they share, and the names of these tensors."""

    file: str
    names: frozenset[str]


class Checkpointable(Protocol):
    """A class of experiments, whose checkpoints have a format of their own."""

    checkpoint_format: ClassVar[str]


C = TypeVar("C", bound=Checkpointable)


class Checkpoint(NamedTuple, Generic[C]):
    """The content of a checkpoint.

    Attributes:
        config: the resolved experiment; `classes`: names in the order of the logits.
        model, ema: tensors of the detector as trained and as averaged.
        training: state that only resuming needs (optimizer, epoch, …); empty in `best`.
        frame_rates: the lowest and highest of the training videos; None if unknown, as in files of
            earlier versions.
        folder: where the training ran, which relative paths are from; None if unknown.
    """

    config: C
    classes: tuple[str, ...]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    training: dict[str, Any]
    frame_rates: tuple[float, float] | None = None
    folder: str | None = None


def save_checkpoint(path: Path, content: Checkpoint[Any], shared: Shared | None = None) -> None:
    """Write a file that appears whole or not at all.

    Args:
        shared: what is in a file beside it, see `save_shared`; None writes everything into this.

    Raises:
        FloatingPointError: weights are NaN or infinite; the previous file is as it was.
        OSError: it could not be written; the previous file is as it was.
    """
    names = [*content.model]
    if shared is not None:
        model, ema = (
            {name: t for name, t in part.items() if name not in shared.names}
            for part in (content.model, content.ema)
        )
        content = content._replace(model=model, ema=ema)
    # The average shares what does not learn.
    own = {n: t for n, t in content.ema.items() if t is not content.model.get(n)}
    if bad := [*find_not_finite(content.model), *find_not_finite(own)]:
        raise FloatingPointError(
            f"{path} is not written: {len(bad)} tensors became NaN or infinite "
            f"({list_first(bad)}); lower training.lr or training.backbone_lr, or set "
            "training.precision to fp32"
        )
    fields = content._asdict() | {
        "config": dump(content.config),
        "format": content.config.checkpoint_format,
        "folder": os.getcwd(),
    }
    if shared is not None:
        fields[FIELD] = {"file": shared.file, "order": names}
    _write(path, fields)


def save_shared(folder: Path, content: Checkpoint[Any], names: set[str]) -> Shared:
    """Write tensors of a model that never change into a file of a folder, if it is not there.

    Raises:
        OSError: it could not be written.
    """
    tensors = {name: tensor for name, tensor in content.model.items() if name in names}
    shared = Shared(name_shared(tensors), frozenset(tensors))
    if not (folder / shared.file).is_file():
        _write(folder / shared.file, tensors)
    return shared


def make_whole(folder: Path) -> None:
    """Rewrite a folder's checkpoints that share a file, each with everything; remove that file.

    Raises:
        OSError: one could not be written; it and what it needs are as they were.
        ValueError: what one needs is damaged.
    """
    files = [*folder.glob(SHARED_FILES)]
    for path in sorted({*folder.glob("*.pt")}.difference(files)) if files else ():
        try:
            fields = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, MemoryError):
            raise  # it may be ours, and need the file that would be removed
        except Exception:
            continue  # somebody else's
        about = fields.get(FIELD) if isinstance(fields, dict) else None
        # A copy from another run may lack what it shared there: it needs nothing that is here.
        if about is not None and (folder / about["file"]) in files:
            join_shared(path, fields)
            _write(path, fields)
    for file in files:
        file.unlink()


def _write(path: Path, fields: Any) -> None:
    with atomic_path(path) as aside, aside.open("wb") as file:
        try:
            # Tensors that the average shares with the model (the frozen trunk) are stored once.
            torch.save(fields, file)
        except RuntimeError as error:
            # torch's complaint about its unfinished archive hides the failed write behind it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def changed_settings(saved: Any, config: Any, only: tuple[str, ...] | None = None) -> list[str]:
    """Return the settings that matter and differ, as text; paths to the same file are the same.

    Args:
        only: beginnings of the names of those that matter; None: all that shape a run.
    """
    ours, theirs = flatten(config), flatten(saved)
    return [
        f"{name} was {theirs[name]}, is {ours[name]}"
        for name in ours
        if (name not in FREE_TO_CHANGE if only is None else name.startswith(only))
        if not _is_same(theirs[name], ours[name])
    ]


def _is_same(one: object, other: object) -> bool:
    """Return whether two values of a setting are equal, or paths that lead to the same file."""
    if isinstance(one, str) and isinstance(other, str) and one != other:
        return _lead_to_same_file(one.removeprefix("file://"), other.removeprefix("file://"))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other


def _lead_to_same_file(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    try:
        # Also where nothing is any more, as after the videos of a cached run were removed.
        return os.path.realpath(one) == os.path.realpath(other) or os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def check_same_run(
    path: Path, saved: Checkpoint[Any], config: Any, classes: tuple[str, ...], processes: int
) -> None:
    """Raise ValueError unless a run with these settings can resume from `saved`.

    Raises:
        ValueError: settings that shape the run, the classes or the number of processes differ; the
            message lists them.
    """
    if not saved.training:
        raise ValueError(f"{path} has weights but no training state (a best.pt?); it cannot resume")
    lines = changed_settings(saved.config, config)
    if saved.classes != classes:
        lines.append(f"classes were {', '.join(saved.classes)}, are {', '.join(classes)}")
    if saved.training["processes"] != processes:
        lines.append(f"processes were {saved.training['processes']}, are {processes}")
    if lines:
        raise ValueError(
            f"{path} belongs to another run: {'; '.join(lines)}. Resume with the settings in its "
            "config.yaml, or start afresh in another `out`"
        )


def is_checkpoint(path: str | Path, kind: type[Checkpointable]) -> bool:
    """Return whether a file is a checkpoint of this kind, without reading its tensors."""
    return format_of(path) == kind.checkpoint_format


def format_of(path: str | Path) -> object:
    """Return which of this project's formats a checkpoint has, without reading its tensors."""
    try:
        fields = torch.load(locate(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return None  # `load_checkpoint` raises the cause
    return fields.get("format") if isinstance(fields, dict) else None


def check_kind(path: str | Path, found: object) -> None:
    """Raise ValueError if a file has a format of this project, which is not the one asked for."""
    if isinstance(found, str) and found in KINDS:
        raise ValueError(f"{path} is {KINDS[found]}")


def _migrate(settings: dict[str, Any]) -> None:
    """Replace settings of earlier versions: `batch_size` was of one process and micro-batch.

    The number of processes was not saved; `training.global_batch` becomes that of one.
    """
    training = settings.get("training")
    if isinstance(training, dict) and "batch_size" in training:
        training["global_batch"] = training.pop("batch_size") * training.get("accumulate", 1)


def load_checkpoint(path: str | Path, kind: type[C]) -> Checkpoint[C]:
    """Return a checkpoint of this project; pickled code is never run.

    Args:
        kind: the class of its experiment.

    Raises:
        ValueError: the file is missing, damaged or of another program, or its weights are NaN or
            infinite.
    """
    path = locate(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}; train/e2e.py writes last.pt into its `out`")
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
        damaged = zipfile.ZipFile(path).testzip()  # torch itself checks no sums
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__})"
        ) from error
    if damaged:
        raise ValueError(f"{path} is damaged: its part {damaged} has a wrong checksum")
    found = fields.get("format") if isinstance(fields, dict) else None
    if found != kind.checkpoint_format:
        check_kind(path, found)
        raise ValueError(
            f"{path} is not a checkpoint of this project (format {kind.checkpoint_format})"
        )
    del fields["format"]
    join_shared(path, fields)
    for later in ("frame_rates", "folder"):
        fields.setdefault(later, None)
    if fields.keys() != set(Checkpoint._fields) or not _fit(fields):
        raise ValueError(f"{path} is of another version: its fields are {', '.join(fields)}")
    for part in ("model", "ema"):
        fields[part] = unwrap(fields[part])
        check_finite(fields[part], path)
    config = parse(kind, fields.pop("config"), source=str(path), migrate=_migrate)
    return Checkpoint(config, classes=tuple(fields.pop("classes")), **fields)


def _fit(fields: Mapping[str, Any]) -> bool:
    """Return whether the parts of a checkpoint are of the kinds that they should be."""
    kinds: dict[str, Any] = {
        **{"config": str, "classes": list | tuple, "model": dict, "ema": dict, "training": dict},
        **{"frame_rates": list | tuple | None, "folder": str | None},
    }
    return all(isinstance(fields[name], kind) for name, kind in kinds.items())


def find_data(config: C, saved: Checkpoint[C], source: str | Path, needs_videos: bool) -> C:
    """Return an experiment whose data are found from the folder of this process.

    Relative paths that are the checkpoint's, not given again, and lead nowhere from here are taken
    from the folder that it was trained in; one line says so.

    Args:
        config: the experiment of the checkpoint `source`, perhaps with other settings.

    Raises:
        ValueError: something that is needed is in neither place.
    """
    if saved.folder is None:
        return config
    here, there = os.getcwd(), saved.folder
    ours, theirs = flatten(config), flatten(saved.config)
    found: dict[str, Any] = {}
    for name in (*DATA_FILES, VIDEOS, "cache.url"):
        value = ours.get(name)
        if not value or value != theirs[name]:
            continue
        paths = [value] if isinstance(value, str) else [*value]
        lost = [each for each in paths if not (_is_anywhere(each) or os.path.exists(each))]
        moved = {each: os.path.join(there, each) for each in lost}
        if lost and all(map(os.path.exists, moved.values())):
            new = [moved.get(each, each) for each in paths]
            found[name] = new[0] if isinstance(value, str) else new
        elif lost and (name in DATA_FILES or (name == VIDEOS and needs_videos)):
            where = here if here == there else f"{here} or in {there}, where {source} was trained"
            raise ValueError(f"{name}: there is no {lost[0]} in {where}; give --{name}")
    if not found:
        return config
    if os.environ.get("RANK", "0") == "0":
        print(f"from {there}, where {source} was trained: {', '.join(found)}")
    return parse(type(config), yaml.safe_dump(_replace(dump(config), found)), source=str(source))


def _is_anywhere(path: str) -> bool:
    """Return whether a path or URL means the same from every folder."""
    return "://" in path or os.path.isabs(path)


def _replace(settings: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in YAML as nested ones, some of them, by dotted name, with new values."""
    content: dict[str, Any] = yaml.safe_load(settings)
    for name, value in found.items():
        group, _, own = name.rpartition(".")
        content[group][own] = value
    return content
