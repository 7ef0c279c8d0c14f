"""The page of timelines of a scored subset: what was found, what is annotated, and the mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from configs.atomic import write_text
from evaluate.annotations import Detection, Segment
from evaluate.diagnosis.mistakes import RIGHT, VideoMistakes, find_mistakes
from evaluate.files.timeline import TRUTH, PageVideo, link_video, render_page

TIOU = 0.5  # evaluate/diagnose.py begins with it, too
FOUND = "detections"
MOST_DETECTIONS = 100_000  # of a page, about 4 MB
FEWEST = 20  # of a video, however many videos there are


class VideoFile(NamedTuple):
    """What is known of a video besides its segments."""

    path: Path | None
    duration_s: float | None
    fps: float | None


def write_mistakes_page(
    page: Path,
    title: str,
    truth: Mapping[str, Sequence[Segment]],
    found: Mapping[str, Sequence[Detection]],
    files: Mapping[str, VideoFile],
) -> None:
    """Write a page of the videos in `files`, in that order; if there is truth, with the mistakes.

    Of each video the page has the right detections and the best of the others, so many that the
    file stays small. Detections in other videos count as mistakes, but are not shown.

    Raises:
        ValueError: what `mean_average_precision` refuses.
        OSError: the page cannot be written.
    """
    has_truth = any(truth.values())
    mistakes = find_mistakes(truth, found, TIOU) if has_truth else {}
    most = max(FEWEST, MOST_DETECTIONS // max(1, len(files)))
    videos, hidden = [], 0
    for name, file in files.items():
        every = found.get(name, ())
        kept, own = keep_best(every, mistakes.get(name), most)
        hidden += len(every) - len(kept)
        videos.append(_page_video(page, name, file, truth.get(name, ()), kept, own))
    note = f"Mistakes are those at tIoU {TIOU:g}." if has_truth else ""
    if hidden:
        note += (
            f" Of each video its {most:,} best detections are here, and all that are right; "
            f"{hidden:,} others are left out."
        )
    labels = sorted({segment.label for segments in truth.values() for segment in segments})
    write_text(page, render_page(videos, labels, title, note=note.strip()))


def keep_best(
    found: Sequence[Detection], mistakes: VideoMistakes | None, most: int
) -> tuple[list[Detection], VideoMistakes | None]:
    """Return the `most` best detections and all that are right, with the verdicts on them."""
    order = sorted(range(len(found)), key=lambda place: -found[place].score)
    verdicts = mistakes.verdicts if mistakes else ()
    kept = [
        place
        for rank, place in enumerate(order)
        if rank < most or (verdicts and verdicts[place] == RIGHT)
    ]
    if mistakes is not None:
        mistakes = VideoMistakes([verdicts[place] for place in kept], mistakes.found_with)
    return [found[place] for place in kept], mistakes


def _page_video(
    page: Path,
    name: str,
    file: VideoFile,
    truth: Sequence[Segment],
    found: Sequence[Detection],
    mistakes: VideoMistakes | None,
) -> PageVideo:
    lanes: dict[str, Sequence[Segment | Detection]] = {FOUND: found}
    if mistakes is not None:
        lanes = {TRUTH: truth, **lanes}
    ends = [segment.end_s for lane in lanes.values() for segment in lane]
    return PageVideo(
        name=name,
        source=link_video(file.path, page) if file.path else "",
        duration_s=file.duration_s or max(ends, default=1.0),
        fps=file.fps,
        lanes=lanes,
        main=FOUND,
        mistakes=mistakes,
    )
