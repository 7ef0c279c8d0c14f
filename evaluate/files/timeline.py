"""Videos with timelines of what was found in them, as one HTML file that needs nothing else."""

import base64
import mimetypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from evaluate.annotations import Detection, Segment
from evaluate.rendering import render_template

LARGEST_EMBEDDED = 100_000_000  # bytes; browsers stop somewhere behind that


@dataclass(frozen=True)
class PageVideo:
    """One video of a page.

    Args:
        source: URL of the file (`link_video`, `embed_video`).
        lanes: what is drawn, by name, one above the other; segments without scores are truth.
        curves: scores [K, N] in the order of the page's classes, of which lane `curves_of`.
        times_s: edges of the curves' bins, [N + 1].
    """

    name: str
    source: str
    duration_s: float
    fps: float
    lanes: Mapping[str, Sequence[Segment | Detection]]
    curves_of: str
    curves: NDArray[np.floating]
    times_s: NDArray[np.floating]


def link_video(video: Path, page: Path) -> str:
    """Return the URL that a page has for a video: relative, so that both can move together."""
    return quote(os.path.relpath(video.resolve(), page.resolve().parent))


def embed_video(video: Path) -> str:
    """Return a URL that holds the video itself."""
    kind = mimetypes.guess_type(video.name)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode()}"


def check_embeddable(video: Path) -> None:
    """Raise ValueError for a file that is too large to be embedded."""
    size = video.stat().st_size
    if size > LARGEST_EMBEDDED:
        raise ValueError(
            f"{video}: has {size / 1e6:.0f} MB; at most {LARGEST_EMBEDDED / 1e6:.0f} MB can be "
            "embedded in a page. Leave out --embed and keep the file beside the page"
        )


def render_page(
    videos: Sequence[PageVideo], classes: Sequence[str], title: str, threshold: float = 0.3
) -> str:
    """Return the HTML text.

    Args:
        classes: in the order of the curves; labels that are not among them follow.
        title: what found the segments.
        threshold: score below which segments are hidden at first.
    """
    names = _ranked(videos, classes, threshold)
    data = {
        "classes": names,
        "threshold": threshold,
        "videos": [_as_data(video, classes, names) for video in videos],
    }
    return render_template("page.html", title=title, data=data)


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
        "fps": round(video.fps, 4),
        "lanes": [
            {
                "name": name,
                "segments": [_row(segment, number) for segment in lane],
            }
            for name, lane in video.lanes.items()
        ],
        "curves": {
            "of": video.curves_of,
            "times": [round(float(time), 3) for time in video.times_s],
            # Scores in thousandths, by the page's number of the class.
            "scores": {
                number[name]: (1000 * row).round().astype(int).tolist()
                for name, row in zip(classes, video.curves, strict=True)
                if row.max() >= 0.01
            },
        },
    }


def _row(segment: Segment | Detection, number: Mapping[str, int]) -> list[float]:
    """Return class, start, end and, of detections, score."""
    row = [number[segment.label], round(segment.start_s, 3), round(segment.end_s, 3)]
    return [*row, round(segment.score, 4)] if isinstance(segment, Detection) else row
