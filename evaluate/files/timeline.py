"""Videos with timelines of what was found in them, as one HTML file that needs nothing else."""

import base64
import mimetypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from configs.messages import format_bytes
from evaluate.annotations import Detection, Segment
from evaluate.diagnosis.mistakes import VERDICTS, VideoMistakes
from evaluate.rendering import render_template

LARGEST_EMBEDDED = 100_000_000  # bytes; browsers stop somewhere beyond that
TRUTH = "ground truth"  # the name of its lane


@dataclass(frozen=True)
class PageVideo:
    """One video of a page.

    Args:
        source: URL of the file (`link_video`, `embed_video`); empty if the file is unknown.
        fps: None if unknown.
        lanes: what is drawn, by name, one above the other; `TRUTH` has no scores.
        main: the lane that matters most.
        curves: scores [K, N] of lane `main`, in the order of the page's classes; there may be none.
        times_s: edges of the curves' bins, [N + 1].
        mistakes: of lanes `main` and `TRUTH`.
    """

    name: str
    source: str
    duration_s: float
    fps: float | None
    lanes: Mapping[str, Sequence[Segment | Detection]]
    main: str
    curves: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 0)))
    times_s: NDArray[np.floating] = field(default_factory=lambda: np.zeros(0))
    mistakes: VideoMistakes | None = None


def link_video(video: Path, page: Path) -> str:
    """Return the URL that a page has for a video: relative, so that both can move together."""
    return quote(os.fsencode(os.path.relpath(video.resolve(), page.resolve().parent)))


def embed_video(video: Path) -> str:
    """Return a URL that holds the video itself."""
    kind = mimetypes.guess_type(video.name)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode()}"


def check_embeddable(video: Path) -> None:
    """Raise ValueError for a file that is too large to be embedded."""
    size = video.stat().st_size
    if size > LARGEST_EMBEDDED:
        raise ValueError(
            f"{video}: has {format_bytes(size)}; at most {format_bytes(LARGEST_EMBEDDED)} can be "
            "embedded in a page. Leave out --embed and keep the file beside the page"
        )


def render_page(
    videos: Sequence[PageVideo],
    classes: Sequence[str],
    title: str,
    threshold: float = 0.3,
    note: str = "",
) -> str:
    """Return the HTML text.

    Args:
        classes: in the order of the curves; labels that are not among them follow.
        title: what found the segments.
        threshold: score below which segments are hidden at first.
        note: a sentence under the title.
    """
    names = _ranked(videos, classes, threshold)
    data = {
        "classes": names,
        "threshold": threshold,
        "verdicts": VERDICTS,
        "videos": [_as_data(video, classes, names) for video in videos],
    }
    return render_template("page.html", title=title, note=note, data=data)


def _ranked(videos: Sequence[PageVideo], classes: Sequence[str], threshold: float) -> list[str]:
    """Return all labels, those that the page begins with first: colours are few."""
    segments = [s for video in videos for lane in video.lanes.values() for s in lane]
    every = dict.fromkeys([*classes, *sorted({s.label for s in segments})])
    seen = {s.label for s in segments if not isinstance(s, Detection) or s.score >= threshold}
    return sorted(every, key=lambda label: label not in seen)


def _as_data(video: PageVideo, classes: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    number = {name: index for index, name in enumerate(names)}
    return {
        "name": video.name,
        "source": video.source,
        "duration": round(video.duration_s, 3),
        "fps": video.fps and round(video.fps, 4),
        "lanes": [
            {
                "name": name,
                "truth": name == TRUTH,
                "segments": [_row(segment, number) for segment in lane],
                "marks": _marks(video, name),
            }
            for name, lane in video.lanes.items()
        ],
        "main": video.main,
        "curves": {
            "times": [round(float(time), 3) for time in video.times_s],
            # Scores in thousandths, by the page's number of the class.
            "scores": {
                number[name]: (1000 * row).round().astype(int).tolist()
                for name, row in zip(classes, video.curves, strict=video.curves.size > 0)
                if row.max() >= 0.01
            },
        },
    }


def _marks(video: PageVideo, lane: str) -> list[int] | list[float | None] | None:
    """Return what the page shows of mistakes in a lane, in the order of its segments.

    Of detections the place of their verdict, of truth the score that it is found with.
    """
    if video.mistakes is None or lane not in (TRUTH, video.main):
        return None
    if lane == TRUTH:
        return [score and round(score, 4) for score in video.mistakes.found_with]
    return [VERDICTS.index(verdict) for verdict in video.mistakes.verdicts]


def _row(segment: Segment | Detection, number: Mapping[str, int]) -> list[float]:
    """Return class, start, end and, of detections, score."""
    row = [number[segment.label], round(segment.start_s, 3), round(segment.end_s, 3)]
    return [*row, round(segment.score, 4)] if isinstance(segment, Detection) else row
