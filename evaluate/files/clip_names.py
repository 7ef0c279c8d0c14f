"""Names of the files into which the segments of a video are cut."""

import re
from collections import Counter
from collections.abc import Sequence

from evaluate.annotations import Detection, Segment

LONGEST = 90  # bytes of a video's name and of a class: file systems allow 255 in all


def clip_names(video: str, segments: Sequence[Segment | Detection]) -> list[str]:
    """Return a name for each segment that tells video, class and times, all different.

    What not every file system allows in names becomes `_`.
    """
    seen: Counter[str] = Counter()
    names = []
    for segment in segments:
        times = f"{segment.start_s:07.2f}-{segment.end_s:07.2f}s"
        name = f"{_plain(video)}_{_plain(segment.label)}_{times}"
        seen[name.lower()] += 1
        again = seen[name.lower()]
        names.append(f"{name}_{again}.mp4" if again > 1 else f"{name}.mp4")
    return names


def _plain(text: str) -> str:
    kept = re.sub(r"[^\w.-]+", "_", text).strip("._-") or "_"
    return kept.encode()[:LONGEST].decode(errors="ignore")
