"""What a video file's header announces, against what the file holds."""

from pathlib import Path

from extract.index import VideoIndex, open_video

TOLERANCE_S = 0.5  # of durations that headers tell; counts of frames are exact


def announced_frames(path: str | Path, index: VideoIndex) -> int:
    """Return how many frames a readable file should have; more than the index has if it was cut.

    A download or a copy that broke off often still plays: its header is whole, its end is missing.
    Counts come from mp4, mov and AVI, durations of the video stream from Matroska; where a header
    tells nothing (transport streams), what is there is what was announced.
    """
    there = len(index.pts)
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.frames > there:
            # Frames that an edit list hides are in the file all the same.
            packets = sum(packet.dts is not None for packet in container.demux(stream))
            return there + max(0, stream.frames - packets)
        duration_s = _seconds(stream.metadata.get("DURATION", ""))
    end_s = float(index.pts[-1] * index.time_base) + 1 / index.fps
    missing_s = duration_s - end_s
    return there + (round(missing_s * index.fps) if missing_s > TOLERANCE_S else 0)


def _seconds(text: str) -> float:
    """Read Matroska's `00:01:02.345000000`; 0 for anything else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds
