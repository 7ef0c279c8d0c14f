"""Comparison of a video file's header with what the file holds."""

from pathlib import Path

import numpy as np

from extract.video.index import VideoIndex, open_video, video_stream

TOLERANCE_S = 0.5  # of durations in headers


def announced_frames(path: str | Path, index: VideoIndex) -> int:
    """Return how many frames a readable file should have: more than its index if it was cut off.

    An incomplete download or copy often still plays: its header is whole, its end is missing. Where
    a header says nothing (transport streams), the frames that are there are all.
    """
    present = len(index.pts)
    if index.repaired:  # the header's times are those of the clock that jumps
        return present
    with open_video(path) as container:
        stream = video_stream(container)
        time_base = float(stream.time_base or 0)
        declared_s = _parse_duration(stream.metadata.get("DURATION", ""))  # as in Matroska
        if stream.duration is not None:
            declared_s = stream.duration * time_base
        declared = stream.frames
        if container.format.name == "avi":
            # Its duration is a guess, and frames that repeat another are empty chunks or none.
            if _is_whole_riff(Path(path)):
                return present
            times = [packet.dts + 1 for packet in container.demux(stream) if packet.dts is not None]
            missing_s = (declared - max(times, default=0)) * time_base
            return present + max(0, round(missing_s * index.fps))
    # Headers count from 0; a clock that wraps round, as 33 bits do, begins below it.
    shown_s = float((index.pts[-1] - min(index.pts[0], 0)) * index.time_base) + 1 / index.fps
    missing_s = declared_s - shown_s
    # The last frame may be shown as long as any other.
    longest_s = float(np.diff(index.pts).max(initial=0) * index.time_base)
    ends_early = missing_s > max(TOLERANCE_S, longest_s)
    if not ends_early:  # an mp4 may count frames that its edit list hides
        return present
    return max(declared, present + round(missing_s * index.fps))


def _is_whole_riff(path: Path) -> bool:
    """Return whether an AVI file is as long as the sizes in its RIFF headers say."""
    length, end = path.stat().st_size, 0
    with open(path, "rb") as file:
        while end < length:
            file.seek(end)
            name, size = file.read(4), int.from_bytes(file.read(4), "little")
            if name != b"RIFF" or not size:  # of a recorder that was switched off, or other data
                return end > 0 and name != b"RIFF"
            end += 8 + size + size % 2
    return end <= length + 1


def _parse_duration(text: str) -> float:
    """Return the seconds of Matroska's `00:01:02.345000000`; 0 for anything else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds
