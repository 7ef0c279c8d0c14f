"""Names of the files into which the segments of a video are cut."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence

from evaluate.annotations import Detection, Segment

LONGEST = 90  # bytes of a video's name and of a class: file systems allow 255 in all


def clip_names(video: str, segments: Sequence[Segment | Detection]) -> list[str]:
    """Return a name for each segment that tells video, class and times, all different.

    What not every file system allows in names becomes `_`, and a long name is cut: of a video whose
    name is changed, a digest of it follows, so that no other video's files have the same names.
    """
    seen: Counter[str] = Counter()
    front, names = _plain(video), []
    if front != video:
        front += f"-{zlib.crc32(video.encode(errors='backslashreplace')):08x}"
    for segment in segments:
        times = f"{segment.start_s:07.2f}-{segment.end_s:07.2f}s"
        name = f"{front}_{_plain(segment.label)}_{times}"
        seen[name.lower()] += 1
        again = seen[name.lower()]
        names.append(f"{name}_{again}.mp4" if again > 1 else f"{name}.mp4")
    return names


def _plain(text: str) -> str:
    kept = re.sub(r"[^\w.-]+", "_", text).strip("._-") or "_"
    return kept.encode()[:LONGEST].decode(errors="ignore")
