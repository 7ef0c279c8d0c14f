"""The videos of a subset: their files, their truth, and what is wrong with them."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.annotations import (
    Annotations,
    Segment,
    Video,
    read_annotations,
    select,
    with_duration,
)
from extract.clips import seconds_to_frames
from extract.video import VideoError, VideoReader
from train.config import DataConfig

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


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
