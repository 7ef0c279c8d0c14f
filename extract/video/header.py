"""Comparison of a video file's header with what the file holds."""

from pathlib import Path

import numpy as np

from extract.video.index import VideoIndex, open_video

TOLERANCE_S = 0.5  # of durations in headers


def announced_frames(path: str | Path, index: VideoIndex) -> int:
    """Return how many frames a readable file should have: more than its index if it was cut off.

    An incomplete download or copy often still plays: its header is whole, its end is missing. Where
    a header says nothing (transport streams), the frames that are there are all.
    """
    present = len(index.pts)
    with open_video(path) as container:
        stream = container.streams.video[0]
        declared_s = _parse_duration(stream.metadata.get("DURATION", ""))  # as in Matroska
        if stream.duration is not None and stream.time_base is not None:
            declared_s = float(stream.duration * stream.time_base)
        declared = stream.frames
        if container.format.name == "avi" and declared > present:
            # Its duration is a guess, and frames that repeat another are empty packets.
            packets = sum(packet.dts is not None for packet in container.demux(stream))
            return present + max(0, declared - packets)
    missing_s = declared_s - float(index.pts[-1] * index.time_base) - 1 / index.fps
    # The last frame may be shown as long as any other.
    longest_s = float(np.diff(index.pts).max(initial=0) * index.time_base)
    ends_early = missing_s > max(TOLERANCE_S, longest_s)
    if not ends_early:  # an mp4 may count frames that its edit list hides
        return present
    return max(declared, present + round(missing_s * index.fps))


def _parse_duration(text: str) -> float:
    """Return the seconds of Matroska's `00:01:02.345000000`; 0 for anything else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds
