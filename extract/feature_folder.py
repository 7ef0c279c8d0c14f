"""A look at a whole folder of features before any is imported: all that is wrong, at once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cache.address import DTYPES
from cache.dtypes import Dtype
from configs.messages import truncated
from configs.progress import ProgressBar
from extract.feature_files import read_array

Layout = Literal["tc", "ct"]
UNEQUAL = 2
"""Rows by which the files of one video may differ: networks end at slightly different frames."""
SHARE = 0.05
"""Of a video's duration that its rows may lack or exceed: rounded frame rates differ by less."""
CLIP = 64
"""Frames at a video's end that may have no row: what the longest clips of networks in use span."""
USUAL_STRIDES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class FeatureSource:
    """The feature files of one video, one from every folder.

    Args:
        fps: the video's frame rate; `frames`, `duration_s`: as annotated, where they are.
    """

    name: str
    files: tuple[Path, ...]
    fps: float
    frames: int | None
    duration_s: float | None

    def lasts(self, rows: int, stride: int) -> float:
        """Return how many seconds rows stand for."""
        return rows * stride / self.fps

    def fits(self, rows: int, stride: int) -> bool:
        """Return whether so many rows may be the whole video's; True if its length is not known."""
        if self.duration_s is None:
            return True
        excess, spare = self.lasts(rows, stride) - self.duration_s, SHARE * self.duration_s
        if excess > 0:  # the last row may reach past the end, as may padding
            return excess <= max(spare, min(2 * stride / self.fps + 0.5, self.duration_s / 2))
        return -excess <= max(spare, min((CLIP + stride) / self.fps, self.duration_s / 3))

    def at_annotated_rate(self) -> "FeatureSource":
        """Return it with the frame rate that follows from its annotations, as far as they say."""
        if not self.frames or not self.duration_s:
            return self
        return replace(self, fps=self.frames / self.duration_s)


@dataclass(frozen=True)
class FileFacts:
    """The shape of a file's array, and its largest number without sign."""

    shape: tuple[int, int]
    largest: float


@dataclass(frozen=True)
class FeatureFolder:
    """What a look at all files found.

    Args:
        layout: which axis of the arrays is time; None where they do not show it.
        width: channels of all folders together.
        usable: sources that can be imported; `rows`: of each, by name.
        problems: of the others, by video; `general`: those of no single one.
    """

    layout: Layout | None
    width: int
    usable: list[FeatureSource]
    rows: dict[str, int]
    problems: dict[str, list[str]]
    general: list[str]

    def text(self, of: int) -> str:
        """Return all problems as lines; `of`: how many videos there are."""
        lines = [*self.general, *chain.from_iterable(self.problems.values())]
        return f"{of - len(self.usable)} of {of} videos have none:\n  " + "\n  ".join(
            truncated(lines)
        )


def survey_features(
    sources: Sequence[FeatureSource],
    layout: Layout | None,
    key: str | None,
    stride: int,
    dtype: Dtype,
) -> FeatureFolder:
    """Read all files and judge them by their content, by each other and by their videos.

    Args:
        layout: None infers it.
        key: of the array in files that hold several.
        dtype: that numbers have to fit into.
    """
    problems: dict[str, list[str]] = {}
    general: list[str] = []
    facts: dict[Path, FileFacts] = {}
    for source in ProgressBar(sources, desc="reading features", unit="video", delay=2, leave=False):
        for path in source.files:
            try:
                array = read_array(path, key)
                facts[path] = FileFacts((array.shape[0], array.shape[1]), _largest(array))
                check_range(path, facts[path].largest, dtype)
            except (ValueError, OSError) as error:
                problems.setdefault(source.name, []).append(str(error))
    if not facts:
        return FeatureFolder(None, 0, [], {}, problems, general)
    folders = list(zip(*(source.files for source in sources), strict=True))
    layout = layout or _infer_layout(sources, folders, facts, stride)
    if layout is None:
        general.append(_undecided(folders, facts))
        return FeatureFolder(None, 0, [], {}, problems, general)
    widths = [_width(files, facts, layout) for files in folders]
    general += [line for files in folders for line in _describe_exchanged(files, facts, layout)]
    rows: dict[str, int] = {}
    for source in sources:
        wrong = [
            line
            for path, width, files in zip(source.files, widths, folders, strict=True)
            if path in facts
            for line in _describe_odd(path, width, facts, layout, files)
        ]
        lengths = [_rows(facts[path], layout) for path in source.files if path in facts]
        if not wrong and lengths and max(lengths) - min(lengths) > UNEQUAL:
            wrong = [
                f"{source.name}: its files have {' and '.join(map(str, lengths))} rows; they are "
                "not of one stride"
            ]
        if wrong:
            problems.setdefault(source.name, []).extend(wrong)
        elif lengths:
            rows[source.name] = min(lengths)
    timed = [s for s in sources if s.name in rows and s.duration_s is not None]
    off = [source for source in timed if not source.fits(rows[source.name], stride)]
    if off:
        likely, advice = _likely_stride(off, rows, stride)
        general.append(
            f"{len(off)} of {len(timed)} files do not last as long as their videos at --stride "
            f"{stride}{advice}"
        )
        for source in off:
            line = _describe_length(source, rows[source.name], stride, likely)
            problems.setdefault(source.name, []).append(line)
    usable = [source for source in sources if source.name not in problems]
    if 2 * len(off) > len(timed):  # the stride is wrong, so of those that happen to fit, too
        usable = []
    return FeatureFolder(layout, sum(widths), usable, rows, problems, general)


def check_range(path: Path, largest: float, dtype: Dtype) -> None:
    """Raise ValueError, which names --dtype, if a file's largest number is infinite as `dtype`."""

    def fits(kind: Dtype) -> bool:
        return bool(torch.tensor(largest, dtype=torch.float64).to(DTYPES[kind]).isfinite())

    if not fits(dtype):
        wider = [kind for kind in DTYPES if kind != dtype and fits(kind)]
        remedy = f"give --dtype {' or '.join(wider)}" if wider else "scale the features"
        raise ValueError(
            f"{path}: its largest number, {largest:.6g}, is too large for {dtype} (--dtype), "
            f"which ends at {torch.finfo(DTYPES[dtype]).max:.6g}: {remedy}"
        )


def _largest(array: NDArray[np.floating]) -> float:
    return max(float(array.max()), -float(array.min()))


def _rows(facts: FileFacts, layout: Layout) -> int:
    return facts.shape[0 if layout == "tc" else 1]


def _channels(facts: FileFacts, layout: Layout) -> int:
    return facts.shape[1 if layout == "tc" else 0]


def _other(layout: Layout) -> Layout:
    return "ct" if layout == "tc" else "tc"


def _infer_layout(
    sources: Sequence[FeatureSource],
    folders: Sequence[Sequence[Path]],
    facts: dict[Path, FileFacts],
    stride: int,
) -> Layout | None:
    """Return which axis is time: not the one that is as long in all files; None if that is open."""
    for files in folders:
        shapes = [facts[path].shape for path in files if path in facts]
        # Numbers that most files have on either axis, and the files that have them on one.
        either = Counter(chain.from_iterable(set(shape) for shape in shapes))
        most = max(either.values(), default=0)
        votes: list[tuple[int, list[int], Layout]] = []
        for width in (w for w, count in either.items() if count == most):
            for axis, layout in ((1, "tc"), (0, "ct")):
                having = [place for place, shape in enumerate(shapes) if shape[axis] == width]
                votes.append((-len(having), having, "tc" if layout == "tc" else "ct"))
        votes = sorted(vote for vote in votes if len(vote[1]) > 1)
        if votes and (len(votes) == 1 or _beats(votes[0], votes[1])):
            return votes[0][2]
    # Arrays of one shape: time is the axis that lasts as long as the videos.
    timed = [s for s in sources if s.duration_s is not None and s.files[0] in facts]
    fitting: dict[Layout, int] = {
        layout: sum(s.fits(_rows(facts[s.files[0]], layout), stride) for s in timed)
        for layout in ("tc", "ct")
    }
    if fitting["tc"] != fitting["ct"]:
        return "tc" if fitting["tc"] > fitting["ct"] else "ct"
    return None


def _beats(one: tuple[int, list[int], Layout], other: tuple[int, list[int], Layout]) -> bool:
    """Return whether more files agree, or as many that come earlier and are not the same ones."""
    if one[0] != other[0]:
        return True
    return one[2] == other[2] or (one[1] != other[1] and bool(set(one[1]) & set(other[1])))


def _undecided(folders: Sequence[Sequence[Path]], facts: dict[Path, FileFacts]) -> str:
    shown = [
        f"{path.name} is {facts[path].shape[0]} x {facts[path].shape[1]}"
        for path in chain.from_iterable(folders)
        if path in facts
    ]
    return (
        f"{folders[0][0].parent}: the arrays do not show which axis is time "
        f"({'; '.join(truncated(shown[:3]))}): give --layout tc or ct"
    )


def _width(files: Sequence[Path], facts: dict[Path, FileFacts], layout: Layout) -> int:
    """Return the channels that most files of a folder have, transposed ones included."""
    known = [facts[path] for path in files if path in facts]
    either = Counter(chain.from_iterable(set(each.shape) for each in known))
    here = Counter(_channels(each, layout) for each in known)
    return max(here, key=lambda width: (here[width], either[width]), default=0)


def _describe_exchanged(
    files: Sequence[Path], facts: dict[Path, FileFacts], layout: Layout
) -> list[str]:
    """Return a line if a folder's arrays are as wide as each other only the other way round."""
    known = [facts[path] for path in files if path in facts]
    lengths = {_rows(each, layout) for each in known}
    if len(lengths) > 1 or len({_channels(each, layout) for each in known}) < 2:
        return []
    return [
        f"{files[0].parent}: with --layout {layout} all arrays have {lengths.pop()} rows, but not "
        f"as many channels; is it --layout {_other(layout)}?"
    ]


def _describe_odd(
    path: Path, width: int, facts: dict[Path, FileFacts], layout: Layout, files: Iterable[Path]
) -> list[str]:
    """Return what is wrong with a file's shape among the others of its folder."""
    own = facts[path]
    if _channels(own, layout) == width:
        return []
    if _rows(own, layout) == width:
        like = sum(path in facts and _channels(facts[path], layout) == width for path in files)
        axes = {"tc": "[T, C]", "ct": "[C, T]"}
        return [
            f"{path} is {own.shape[0]} x {own.shape[1]}, {axes[_other(layout)]}, where {like} "
            f"others are {axes[layout]}: transpose it"
        ]
    return [f"{path}: {_channels(own, layout)} channels, where others have {width}"]


def _likely_stride(
    off: Sequence[FeatureSource], rows: dict[str, int], stride: int
) -> tuple[int | None, str]:
    """Return the stride that fits most of the files, if it fits any, and what to say of it."""
    nearest = {round((s.duration_s or 0) * s.fps / rows[s.name]) for s in off}
    candidates = {*USUAL_STRIDES, *nearest} - {0, stride}

    def rank(candidate: int) -> tuple[int, bool, bool, float]:
        fit = sum(source.fits(rows[source.name], candidate) for source in off)
        error = sum(abs(s.lasts(rows[s.name], candidate) - (s.duration_s or 0)) for s in off)
        return fit, candidate in USUAL_STRIDES, candidate % 2 == 0, -error

    best = max(candidates, key=rank)
    fit = rank(best)[0]
    if all(source.at_annotated_rate().fits(rows[source.name], stride) for source in off):
        return None, ": at the annotated frame rates they would; leave --fps out"
    if fit == len(off):
        return best, f": --stride {best} would fit {'all of them' if fit > 1 else 'it'}"
    if len({rows[source.name] for source in off}) == 1 and len(off) > 1:
        return None, f": all have {rows[off[0].name]} rows, as if resized to one length"
    if 2 * fit > len(off):
        return best, f": --stride {best} would fit {fit} of them"
    return None, ", and no one stride would fit them"


def _describe_length(source: FeatureSource, rows: int, stride: int, likely: int | None) -> str:
    """Return by how much a file's rows are off, and the stride that would fit it alone."""
    duration = source.duration_s or 0.0
    seconds = source.lasts(rows, stride)
    how = f"{abs(seconds - duration):.1f} s too {'long' if seconds > duration else 'short'}"
    own = likely if likely and source.fits(rows, likely) else round(duration * source.fps / rows)
    return (
        f"{source.files[0]}: {rows} rows at --stride {stride} and {source.fps:g} frames/s last "
        f"{seconds:.1f} s, the video {duration:.1f} s: {how}; a row every {own} frames would fit"
    )
