"""Windows of videos as samples: random ones to train on, sliding ones to test on.

A training sample depends on the seed, the epoch and its index alone, never on which worker or
process makes it: runs are reproducible with any number of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from evaluate.annotations import (
    Annotations,
    Segment,
    Video,
    read_annotations,
    select,
    with_duration,
)
from extract.clips import Window, random_window, seconds_to_frames, sliding_windows, truth_inside
from extract.reversal import reverse_segments
from extract.transforms import apply, evaluation_transform, train_transform
from extract.video import VideoError, VideoReader
from train.batch import Sample, collate
from train.config import DataConfig, Experiment

VIDEO_SUFFIXES = {
    *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
}


@dataclass(frozen=True)
class Item:
    """A video file with its truth: in frames [G, 2] and class indices [G], and as annotated."""

    name: str
    path: Path
    frames: int
    duration_s: float
    segments: NDArray[np.floating]
    labels: NDArray[np.int64]
    truth: tuple[Segment, ...]

    def to_seconds(self, frames: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map frame numbers to times within the video, in seconds."""
        return np.clip(frames / self.frames, 0, 1) * self.duration_s


def item_of(path: str | Path) -> Item:
    """Return a file without truth as an item; one that does not decode is refused."""
    reader = VideoReader(path)
    reader.frames(np.array([0, len(reader) - 1]))
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)
    return Item(Path(path).stem, Path(path), len(reader), len(reader) / reader.fps, *nothing, ())


def load_annotations(data: DataConfig) -> Annotations:
    """Read the experiment's annotation file, class list and video tables.

    Raises:
        ValueError: a file is missing or malformed.
    """
    for setting, path in (
        ("annotations", data.annotations),
        ("classes", data.classes),
        *(("info_csv", path) for path in data.info_csv),
    ):
        if path and not Path(path).is_file():
            raise ValueError(f"data.{setting}: there is no file {path}")
    annotations = read_annotations(
        Path(data.annotations),
        classes=Path(data.classes) if data.classes else None,
        info_csv=[Path(path) for path in data.info_csv],
        blocked=data.blocked,
    )
    if not annotations.classes:
        raise ValueError(f"data.annotations: {data.annotations} has no action in it")
    return annotations


def _video_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            if path.stem in files:
                raise ValueError(
                    f"data.videos: {files[path.stem]} and {path} share a name; remove one"
                )
            files[path.stem] = path
    return files


def load_items(data: DataConfig, annotations: Annotations, subset: str) -> list[Item]:
    """Match a subset's videos with their files.

    Raises:
        ValueError: files are missing or unreadable; all of them are listed at once.
    """
    folder = Path(data.videos)
    if not folder.is_dir():
        raise ValueError(f"data.videos: there is no folder {folder}")
    files = _video_files(folder)
    videos = select(annotations, subset)
    index = {label: i for i, label in enumerate(annotations.classes)}
    warnings: Counter[str] = Counter()

    def build(video: Video) -> Item | str:
        if video.name not in files:
            twin = Path(video.name).stem in files
            hint = "; leave out the extension in the annotations" if twin else ""
            return f"{video.name}: no such file in {folder}{hint}"
        try:
            item = item_of(files[video.name])
        except VideoError as error:
            return str(error)
        # The file knows best how many frames it has; the annotations how long they think it is.
        if video.duration_s is None:
            try:
                video = with_duration(video, item.duration_s, warnings)
            except ValueError as error:
                return f"{data.annotations}: {error}"
        duration = video.duration_s or item.duration_s
        if not 0.5 < duration / item.duration_s < 2:
            return (
                f"{item.path}: lasts {item.duration_s:.1f} s, but {duration:.1f} s in "
                f"{data.annotations}; is it another video?"
            )
        if abs(duration - item.duration_s) > max(1.0, 0.02 * duration):
            warnings["videos whose file is longer or shorter than annotated"] += 1
        seconds = np.array([s[1:] for s in video.segments], np.float64).reshape(-1, 2)
        return replace(
            item,
            duration_s=duration,
            segments=seconds_to_frames(seconds, duration, item.frames),
            labels=np.array([index[s.label] for s in video.segments], np.int64),
            truth=video.segments,
        )

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(build, videos))
    for what, count in warnings.items():
        annotations.warnings[what] = annotations.warnings.get(what, 0) + count
    problems = [item for item in found if isinstance(item, str)]
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(
            f"{len(problems)} of {len(videos)} videos of subset '{subset}' cannot be used; mend "
            f"them or list them under data.blocked:\n  {shown}{more}"
        )
    return [item for item in found if isinstance(item, Item)]


class TrainingWindows(Dataset[Sample]):
    """One random window per video and epoch; indexed by (epoch, position)."""

    def __init__(self, items: Sequence[Item], config: Experiment) -> None:
        self.items = [item for item in items if len(item.segments)]
        if not self.items:
            raise ValueError(f"no video of subset '{config.data.train_subset}' has an action")
        self.config = config
        self.transform = train_transform(config.pixels)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        item = self.items[position]
        rng = np.random.default_rng((self.config.training.seed, epoch, position, 1))
        window = random_window(rng, item.frames, item.segments, self.config.sampling)
        return _sample(item, window, self.config, self.transform, int(rng.integers(2**31)))


class EvaluationWindows(Dataset[Sample]):
    """The sliding windows of all videos, in order."""

    def __init__(self, items: Sequence[Item], overlap: float, config: Experiment) -> None:
        self.config = config
        self.transform = evaluation_transform(config.pixels)
        self.windows = [
            (item, window)
            for item in items
            for window in sliding_windows(item.frames, overlap, config.sampling)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: int) -> Sample:
        item, window = self.windows[position]
        return _sample(item, window, self.config, self.transform, 0)


def _sample(
    item: Item, window: Window, config: Experiment, transform: torch.nn.Module, seed: int
) -> Sample:
    frames = VideoReader(item.path).frames(window.indices(config.direction))
    completeness = config.sampling.min_completeness
    segments, kept = truth_inside(window, item.segments, completeness)
    if config.direction == "reversed":
        segments = reverse_segments(segments, window.reflection)
    return Sample(
        video=item.name,
        window=window,
        frames=apply(transform, frames, seed),
        mask=torch.from_numpy(window.mask()),
        segments=torch.from_numpy(np.ascontiguousarray(segments, np.float32)),
        labels=torch.from_numpy(item.labels[kept]),
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """This process's share of every epoch's shuffled keys.

    Each step takes consecutive keys of one global order, so that the data of a step is the same
    for any number of processes with the same global batch. What does not fill a step is left for
    another epoch.
    """

    def __init__(
        self, length: int, batch: int, rank: int, processes: int, seed: int, accumulate: int = 1
    ) -> None:
        self.length, self.batch, self.rank, self.processes = length, batch, rank, processes
        self.seed, self.accumulate, self.epoch = seed, accumulate, 0

    @property
    def steps(self) -> int:
        """Batches per process and epoch: whole updates, so that no gradient crosses epochs."""
        updates = self.length // (self.batch * self.processes * self.accumulate)
        return max(1, updates) * self.accumulate

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # The last number keeps this stream apart from those of the samples.
        order = np.random.default_rng((self.seed, self.epoch, 0, 2)).permutation(self.length)
        # Fewer videos than a global batch holds: go round again.
        order = np.resize(order, self.steps * self.batch * self.processes)
        mine = order.reshape(self.steps, self.processes, self.batch)[:, self.rank].ravel()
        return iter([(self.epoch, int(position)) for position in mine])


def training_loader(
    dataset: TrainingWindows, sampler: EpochSampler, config: Experiment
) -> "DataLoader[Sample]":
    """Return a loader of training batches; `sampler.epoch` chooses the epoch of the next pass."""
    return DataLoader(
        dataset,
        batch_size=config.training.batch_size,
        sampler=sampler,
        **_worker_options(config.training.workers),
    )


def evaluation_loader(
    dataset: EvaluationWindows, config: Experiment, workers: int, rank: int = 0, processes: int = 1
) -> "DataLoader[Sample]":
    """Return a loader of this process's share of the test windows, each exactly once."""
    # Neighbouring windows stay in one process: they share a video.
    share = np.array_split(np.arange(len(dataset)), processes)[rank]
    return DataLoader(
        torch.utils.data.Subset(dataset, share.tolist()),
        batch_size=config.evaluation.batch_size,
        **_worker_options(workers),
    )


def _worker_options(workers: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if workers:
        # Spawned, so that no decoder crosses a fork; kept, because starting one takes seconds.
        options |= {"multiprocessing_context": "spawn", "persistent_workers": True}
    return options
