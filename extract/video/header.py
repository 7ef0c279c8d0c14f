"""What a video file's header announces, against what the file holds."""

from pathlib import Path

import numpy as np

from extract.video.index import VideoIndex, open_video

TOLERANCE_S = 0.5  # of durations that headers tell


def announced_frames(path: str | Path, index: VideoIndex) -> int:
    """Return how many frames a readable file should have; more than the index has if it was cut.

    A download or a copy that broke off often still plays: its header is whole, its end is missing.
    Where a header tells nothing (transport streams), what is there is what was announced.
    """
    there = len(index.pts)
    with open_video(path) as container:
        stream = container.streams.video[0]
        told_s = _seconds(stream.metadata.get("DURATION", ""))  # Matroska's way
        if stream.duration is not None and stream.time_base is not None:
            told_s = float(stream.duration * stream.time_base)
        counted = stream.frames
        if container.format.name == "avi" and counted > there:
            # Its duration is a guess, and frames that repeat another are empty packets.
            packets = sum(packet.dts is not None for packet in container.demux(stream))
            return there + max(0, counted - packets)
    missing_s = told_s - float(index.pts[-1] * index.time_base) - 1 / index.fps
    # The last frame may stay as long as any other.
    longest_s = float(np.diff(index.pts).max(initial=0) * index.time_base)
    ends_early = missing_s > max(TOLERANCE_S, longest_s)
    if not ends_early:  # an mp4 may count frames that its edit list hides
        return there
    return max(counted, there + round(missing_s * index.fps))


def _seconds(text: str) -> float:
    """Read Matroska's `00:01:02.345000000`; 0 for anything else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds
