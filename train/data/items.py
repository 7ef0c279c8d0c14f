"""A video with its truth on its timeline, and the videos of a subset."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.address import VideoInfo
from configs.messages import truncated
from evaluate.annotations import Segment
from extract.sampling.windows import seconds_to_frames


@dataclass(frozen=True)
class VideoItem:
    """A video file with its truth: on its timeline [G, 2], class indices [G], and as annotated.

    The unit of the timeline is a frame or, with `sampling_fps` (`sampling.fps`), 1/fps seconds; see
    extract.sampling.windows. `fps` is the file's rate, on average; where frames come at uneven
    times, `times_s` [N + 1] holds when each begins and the last ends. `identity` is the file's,
    where a cache is used; the file itself may then be gone.
    """

    name: str
    path: Path
    frames: int
    duration_s: float
    fps: float
    segments: NDArray[np.floating]
    labels: NDArray[np.int64]
    truth: tuple[Segment, ...]
    times_s: NDArray[np.float64] | None = None
    identity: VideoInfo | None = None
    sampling_fps: float | None = None

    @property
    def length(self) -> float:
        """The end of the timeline."""
        if self.sampling_fps is None:
            return self.frames
        return self.frames / self.fps * self.sampling_fps

    @property
    def info(self) -> VideoInfo:
        """The file's identity, which only items loaded with a store have."""
        assert self.identity is not None
        return self.identity

    def to_seconds(self, places: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map places on the timeline to times within the video, in seconds."""
        if self.times_s is not None and self.sampling_fps is None:
            return np.interp(places, np.arange(self.frames + 1), self.times_s)
        return np.clip(places / self.length, 0, 1) * self.duration_s

    def to_timeline(self, seconds: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map times to the timeline; for evenly spaced frames rounded, as for published models."""
        if self.sampling_fps is not None:
            return np.clip(seconds / self.duration_s, 0, 1) * self.length
        if self.times_s is not None:
            return np.interp(seconds, self.times_s, np.arange(self.frames + 1))
        return seconds_to_frames(seconds, self.duration_s, self.frames)


class Named(Protocol):
    """A video, or a clip of one."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Subset(list[T], Generic[T]):
    """The videos, or clips, of a subset; `skipped` maps the names of excluded ones to causes."""

    def __init__(self, items: Iterable[T], skipped: dict[str, str]) -> None:
        super().__init__(items)
        self.skipped = skipped

    @property
    def listed(self) -> int:
        """How many the subset has, those that are skipped included."""
        return len(self) + len(self.skipped)

    def skip_videos(self, skipped: dict[str, str]) -> None:
        """Move items to `skipped`, with causes by name; names that are not here are ignored."""
        self.skipped |= {item.name: skipped[item.name] for item in self if item.name in skipped}
        self[:] = [item for item in self if item.name not in skipped]


def skipped_of(subsets: Iterable[Subset[Any]]) -> dict[str, str]:
    """Return the causes of all that subsets leave out, by name."""
    return {name: cause for items in subsets for name, cause in items.skipped.items()}


def count_listed(subsets: Iterable[Subset[Any]]) -> int:
    """Return how many names subsets have, skipped ones included; one of several counts once."""
    return len({name for items in subsets for name in (*items.skipped, *(i.name for i in items))})


def check_usable(
    found: Sequence[Subset[Any]],
    subsets: Sequence[str],
    stops: bool,
    what: str = "videos",
    show: Callable[[list[str]], list[str]] = list,
    part: bool = False,
) -> None:
    """Raise ValueError with the causes where what cannot be used stops a run.

    Where none of a subset can be used, that is always so.

    Args:
        subsets: names of those that were found; `stops`: whether anything stops the run.
        show: the causes that are shown, of all.
        part: each is a part of its subset, which may have bad ones alone.
    """
    problems = skipped_of(found)
    none_usable = not part and any(items.skipped and not items for items in found)
    if problems and (stops or none_usable):
        names = " and ".join(f"'{subset}'" for subset in dict.fromkeys(subsets))
        shown = "\n  ".join(show([*problems.values()]))
        remedy = "" if none_usable else ", or skip them with --data.bad_videos skip"
        raise ValueError(
            f"{len(problems)} of {count_listed(found)} {what} of {names} cannot be used; mend them "
            f"or list them under data.blocked{remedy}:\n  {shown}"
        )


def format_skipped(skipped: dict[str, str], listed: int, what: str = "videos") -> str:
    """Return the warning that some videos, or clips, do not count, with causes.

    Args:
        skipped: causes by their names.
        listed: how many there are, these included.
    """
    causes = "\n  ".join(truncated(list(skipped.values())))
    return f"warning: {len(skipped)} of {listed} {what} were skipped and do not count:\n  {causes}"
