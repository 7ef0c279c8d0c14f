"""Labelled clips with their files, and views of them as samples.

A training view depends on the seed, the epoch and its position alone, never on which worker or
process makes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.messages import truncated
from evaluate.datasets.fields import did_you_mean
from evaluate.metrics.accuracy import LabelSet
from extract.parallel.processes import gather_objects
from extract.sampling.views import (
    Stretch,
    evaluation_clips,
    evaluation_views,
    order_view,
    training_clip,
    training_view,
)
from extract.sampling.window_frames import open_unchanged
from extract.settings.sampling import Direction
from extract.video.files import files_by_name, is_video
from extract.video.probe import probe
from extract.video.reader import VideoError
from train.data.items import Subset, VideoItem, check_usable
from train.data.loading import EpochSampler, batch_loader, with_substitute
from train.data.video_files import make_item
from train.recognition.clip_lists import LabelledClip, LabelledClips, read_clip_list
from train.recognition.config import LabelledData, Pair, Recognition


@dataclass(frozen=True)
class Example:
    """A clip of a video file with its class in every label set; `labels` is empty if unlabelled."""

    name: str
    item: VideoItem
    stretch: Stretch
    labels: tuple[int, ...] = ()


def read_clips(data: LabelledData) -> LabelledClips:
    """Read the experiment's list of clips and its classes.

    Raises:
        ValueError: a file is missing or malformed.
    """
    return read_clip_list(Path(data.annotations), [Path(file) for file in data.classes])


def load_examples(
    data: LabelledData,
    clips: LabelledClips,
    subsets: Sequence[str],
    accelerator: Accelerator | None = None,
) -> list[Subset[Example]]:
    """Match the clips of subsets with their files.

    Args:
        accelerator: of a run of several processes, which must all get the same examples.

    Raises:
        ValueError: a subset has no clips, or files are missing or unreadable (with
            `data.bad_videos` skip: all of a subset); those of all subsets are listed at once.
    """
    folder = Path(data.videos if data.videos is not None else data.annotations)
    if not folder.is_dir():
        raise ValueError(f"data.videos: there is no folder {folder}")
    chosen = [_select_clips(data, clips, subset) for subset in subsets]
    files = _VideoFinder(folder)
    found = {
        name: path
        for part in chosen
        for clip in part
        for name in clip.video
        if (path := files.find(name)) is not None
    }
    paths = sorted(set(found.values()))
    probed = probe(paths, progress=accelerator is None or accelerator.is_main_process)
    indices = dict(zip(paths, probed, strict=True))
    parts = []
    for part in chosen:
        kept, problems = list[Example](), dict[str, str]()
        for clip in part:
            name = _clip_name(clip)
            try:
                path = next((found[n] for n in clip.video if n in found), None)
                if path is None:
                    wanted = " or ".join(dict.fromkeys(clip.video))
                    raise ValueError(f"{clip.place}: {wanted}: no such file in {folder}")
                kept.append(_example(clip, name, make_item(path, indices[path]), clips.sets))
            except ValueError as error:
                problems[name] = str(error)
        if accelerator is not None:
            # A file may be bad, or too slow, for one process alone.
            for others in gather_objects([problems]):
                problems = others | problems
            kept = [example for example in kept if example.name not in problems]
        parts.append(Subset(kept, problems))
    check_usable(parts, subsets, data.bad_videos == "stop", "clips", truncated)
    return parts


def probe_example(path: str | Path) -> Example:
    """Return a whole video file without labels as an example.

    Raises:
        VideoError: it cannot be read.
    """
    (found,) = probe([path], progress=False)
    item = make_item(Path(path), found)
    return Example(str(path), item, _whole_video(item))


def label_swaps(pairs: Sequence[Pair], sets: Sequence[LabelSet], setting: str) -> dict[int, int]:
    """Return the class that each class of a pair is replaced by, in the first label set.

    Raises:
        ValueError: a class is not in the set, or in two pairs; `setting` is where the pairs are.
    """
    classes = sets[0].classes
    found: dict[int, int] = {}
    for pair in pairs:
        one, two = (_class_index(name, classes, setting) for name in pair)
        for a, b in {(one, two), (two, one)}:
            if a in found:
                raise ValueError(f"{setting}: {classes[a]!r} is in two pairs; remove one")
            found[a] = b
    return found


def _class_index(name: str | int, classes: tuple[str, ...], setting: str) -> int:
    if isinstance(name, int):
        if not 0 <= name < len(classes):
            raise ValueError(f"{setting}: class {name}, but there are {len(classes)}, from 0 on")
        return name
    if name not in classes:
        raise ValueError(f"{setting}: there is no class {name!r}{did_you_mean(name, classes)}")
    return classes.index(name)


def _select_clips(data: LabelledData, clips: LabelledClips, subset: str) -> list[LabelledClip]:
    chosen = [clip for clip in clips.clips if clip.subset == subset]
    if not chosen:
        subsets = sorted({clip.subset for clip in clips.clips})
        raise ValueError(
            f"no clip is in subset {subset!r}; {data.annotations} has "
            f"{', '.join(subsets) or 'none'}{did_you_mean(subset, subsets)}"
        )
    blocked = set(data.blocked)
    return [
        clip
        for clip in chosen
        if not blocked & {each for name in clip.video for each in (name, Path(name).stem)}
    ]


def _clip_name(clip: LabelledClip) -> str:
    """Return the name of a clip: its video and its span."""
    name = clip.video[0]
    return name if clip.span_s is None else f"{name}, {clip.span_s[0]:g}-{clip.span_s[1]:g} s"


class _VideoFinder:
    """The videos of a folder and of all folders in it, by any unambiguous name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """Return the video of a name, with or without its extension and folders.

        Raises:
            ValueError: several files have it.
        """
        exact = self._folder / name
        if exact.is_file() and is_video(exact):
            return exact
        paths = self._names().get(name, [])
        if len(paths) > 1:
            raise ValueError(
                f"data.videos: {paths[0]} and {paths[1]} share the name {name}; remove one, or "
                "write the folder in front of the name"
            )
        return paths[0] if paths else None

    def _names(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            folders = [path for path in self._folder.rglob("*") if path.is_dir()]
            for folder in sorted([self._folder, *folders]):
                for path in chain.from_iterable(files_by_name(folder).values()):
                    inside = path.relative_to(self._folder).with_suffix("").as_posix()
                    for name in {path.name, path.stem, inside}:
                        self._by_name.setdefault(name, []).append(path)
        return self._by_name


def _whole_video(item: VideoItem) -> Stretch:
    return Stretch(0, item.frames, item.frames / item.duration_s)


def _example(clip: LabelledClip, name: str, item: VideoItem, sets: Sequence[LabelSet]) -> Example:
    labels = tuple(
        each.classes.index(label) for each, label in zip(sets, clip.labels, strict=False)
    )
    whole = _whole_video(item)
    if clip.span_s is None:
        return Example(name, item, whole, labels)
    if clip.span_s[0] >= item.duration_s:
        raise ValueError(
            f"{clip.place}: begins at {clip.span_s[0]:g} s, but {item.path} ends at "
            f"{item.duration_s:.1f} s; is it another video?"
        )
    begin, end = item.to_timeline(np.array(clip.span_s))
    first = min(int(begin), item.frames - 1)
    last = min(max(int(np.ceil(end)), first + 1), item.frames)
    return Example(name, item, whole._replace(first=first, length=last - first), labels)


@dataclass(frozen=True)
class Views:
    """Views of one clip, or of a batch of clips.

    Args:
        videos: names of the clips.
        views: uint8 [B, V, 3, F, S, S]; in training V is 1.
        labels: [B, sets], or [B, 0] where there are none.
        problems: why clips could not be read, by their place in the batch. In training others
            replace them; in testing their views mean nothing.
    """

    videos: tuple[str, ...]
    views: Tensor
    labels: Tensor
    problems: dict[int, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Views":
        """Return the batch with its tensors on `device`, copied without waiting."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Views":
        """Return the batch in page-locked memory, for copies in the background (for DataLoader)."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Views":
        """Return the batch with its tensors changed."""
        return replace(self, views=change(self.views), labels=change(self.labels))


def collate_views(samples: Sequence[Views]) -> Views:
    """Stack samples of one clip each."""
    return Views(
        videos=tuple(sample.videos[0] for sample in samples),
        views=torch.cat([sample.views for sample in samples]),
        labels=torch.cat([sample.labels for sample in samples]),
        problems={row: sample.problems[0] for row, sample in enumerate(samples) if sample.problems},
    )


class TrainingViews(Dataset[Views]):
    """One random view per clip and epoch; indexed by (epoch, position).

    If bad videos are skipped, the next position's view of the same epoch replaces one that cannot
    be read.

    Raises:
        ValueError: no example has labels, or `data.mirrored` names an unknown class.
    """

    def __init__(
        self, examples: Sequence[Example], config: Recognition, sets: Sequence[LabelSet]
    ) -> None:
        self.examples = [example for example in examples if example.labels]
        if not self.examples:
            raise ValueError(f"no clip of subset '{config.data.train_subset}' has a label")
        self.config = config
        self.mirrored = label_swaps(config.data.mirrored, sets, "data.mirrored")

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> Views:
        epoch, first = key
        skips = self.config.data.bad_videos == "skip"
        return with_substitute(lambda *at: self._make_sample(epoch, *at), first, len(self), skips)

    def _make_sample(self, epoch: int, position: int, problem: str | None) -> Views:
        example, config = self.examples[position], self.config
        rng = np.random.default_rng((config.training.seed, epoch, position, 1))
        clip = training_clip(rng, example.stretch, config.views)
        flipped = rng.uniform() < config.crops.flip
        seed = int(rng.integers(2**31))
        reader = open_unchanged(example.item.path, example.item.frames)
        view = training_view(reader, clip, config.crops, flipped, seed)
        first, *others = example.labels
        labels = (self.mirrored.get(first, first) if flipped else first, *others)
        return _sample(example, order_view(view, config.direction)[None], labels, problem)


class EvaluationViews(Dataset[Views]):
    """All test views of a process's share of the clips, indexed by position in the share.

    If bad videos are skipped, a sample with a problem replaces one that cannot be read.

    Args:
        direction: in which clips are seen.
        rank, processes: which share, of how many.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: Recognition,
        direction: Direction,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.examples = examples[rank::processes]
        self.config, self.direction = config, direction

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> Views:
        example, config = self.examples[position], self.config
        try:
            reader = open_unchanged(example.item.path, example.item.frames)
            clips = evaluation_clips(example.stretch, config.views)
            seen = evaluation_views(reader, clips, config.crops)
            views = torch.stack([order_view(view, self.direction) for view in seen])
        except VideoError as error:
            if config.data.bad_videos == "stop":
                raise
            size = config.crops.test_size
            count = config.views.clips * config.crops.crops
            nothing = torch.zeros((count, 3, config.views.frames, size, size), dtype=torch.uint8)
            return _sample(example, nothing, example.labels, str(error))
        return _sample(example, views, example.labels)


def _sample(
    example: Example, views: Tensor, labels: tuple[int, ...], problem: str | None = None
) -> Views:
    numbers = torch.tensor([labels], dtype=torch.int64)
    return Views((example.name,), views[None], numbers, {0: problem} if problem else {})


def training_views_loader(
    dataset: TrainingViews, sampler: EpochSampler, config: Recognition
) -> "DataLoader[Any]":
    """Return a loader of training batches; `sampler.epoch` chooses the epoch of the next pass."""
    return batch_loader(dataset, sampler.batch, config.training.workers, collate_views, sampler)


def evaluation_views_loader(
    dataset: EvaluationViews, config: Recognition, workers: int
) -> "DataLoader[Any]":
    """Return a loader of the share's clips, as many at once as fill a forward pass with views."""
    clips = max(1, config.evaluation.batch_size // (config.views.clips * config.crops.crops))
    return batch_loader(dataset, clips, workers, collate_views)
