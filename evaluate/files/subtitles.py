"""Detections as text: for people, spreadsheets and video players.

Functions take one video's detections in any order and format them in the order of time.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from html import escape

from evaluate.annotations import Detection

BAR = 10  # characters of a score's bar
MOST_ROWS = 40  # of a listing


def sort_by_time(detections: Iterable[Detection]) -> list[Detection]:
    """Return detections in the order in which they begin."""
    return sorted(detections, key=lambda d: (d.start_s, d.end_s, -d.score, d.label))


def format_clock(seconds: float, places: int = 2) -> str:
    """Return a time as people read it, 1:02:03.50 or 2:03.50."""
    whole, fraction = divmod(round(max(seconds, 0.0) * 10**places), 10**places)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    start = f"{hours}:{minute:02d}" if hours else f"{minute}"
    return f"{start}:{second:02d}" + (f".{fraction:0{places}d}" if places else "")


def format_listing(detections: Iterable[Detection]) -> str:
    """Return a table for the terminal; of very many only the best, in the order of time."""
    every = list(detections)
    best = sorted(every, key=lambda d: -d.score)[:MOST_ROWS]
    width = max([5, *(len(_line(d.label)) for d in best)])
    lines = [f"  {'start':>10}  {'end':>10}  {'class':<{width}}  score"]
    for d in sort_by_time(best):
        bar = "█" * round(d.score * BAR)
        times = f"  {format_clock(d.start_s):>10}  {format_clock(d.end_s):>10}"
        lines.append(f"{times}  {_line(d.label):<{width}}  {d.score:.3f} {bar}".rstrip())
    if len(every) > len(best):
        lines.append(f"  … and {len(every) - len(best)} more with lower scores")
    return "\n".join(lines)


def format_csv(videos: Mapping[str, Iterable[Detection]]) -> str:
    """Return all videos' detections as CSV (RFC 4180): video, label, start_s, end_s, score."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(("video", "label", "start_s", "end_s", "score"))
    for video, detections in videos.items():
        for d in sort_by_time(detections):
            times = f"{d.start_s:.3f}", f"{d.end_s:.3f}"
            writer.writerow((video, d.label, *times, f"{d.score:.4f}"))
    return file.getvalue()


def format_srt(detections: Iterable[Detection]) -> str:
    """Return SubRip subtitles: a cue for each detection, its label and score."""
    return "".join(
        f"{number}\n{_stamp(d.start_s, ',')} --> {_after(d, ',')}\n{_text(d)}\n\n"
        for number, d in enumerate(sort_by_time(detections), 1)
    )


def format_vtt(detections: Iterable[Detection]) -> str:
    """Return WebVTT subtitles (W3C): a cue for each detection, its label and score."""
    cues = (
        f"{_stamp(d.start_s, '.')} --> {_after(d, '.')}\n{escape(_text(d), quote=False)}\n\n"
        for d in sort_by_time(detections)
    )
    return "WEBVTT\n\n" + "".join(cues)


def _stamp(seconds: float, point: str) -> str:
    return _written(_milliseconds(seconds), point)


def _after(detection: Detection, point: str) -> str:
    """Return the end of a cue, which must lie after its start."""
    ends = max(_milliseconds(detection.end_s), _milliseconds(detection.start_s) + 1)
    return _written(ends, point)


def _milliseconds(seconds: float) -> int:
    return round(max(seconds, 0.0) * 1000)


def _written(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{point}{rest:03d}"


def _text(detection: Detection) -> str:
    # An arrow would be read as a line of times, an empty line as the end of the cue.
    return f"{_line(detection.label).replace('-->', '→')} ({detection.score:.2f})"


def _line(label: str) -> str:
    return " ".join(label.split())
