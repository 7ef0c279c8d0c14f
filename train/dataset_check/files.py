"""Checks of an experiment's video files."""

from collections.abc import Iterator
from pathlib import Path

from evaluate.datasets.fields import NearFiles
from extract.video.files import describe_no_videos
from extract.video.index import VideoError
from extract.video.probe import HANGS
from train.data.video_files import check_whole
from train.dataset_check.findings import Finding, FindingKind
from train.dataset_check.survey import Survey, unless_skipped

BLOCK_IT = "list the video under data.blocked"
MISSING = FindingKind(
    "missing video", "error", f"bring the file, correct the name in the annotations, or {BLOCK_IT}"
)
UNREADABLE = FindingKind(
    "unreadable video", "error", f"copy or convert the file again, or {BLOCK_IT}"
)
HANGING = FindingKind(
    "hanging video",
    "error",
    f"its decoder never returns: convert the file again, or {BLOCK_IT}",
)
CUT = FindingKind(
    "truncated video",
    "error",
    f"its header announces more frames than there are: copy the file again, or {BLOCK_IT}",
)
TWO_FILES = FindingKind("two files of one name", "error", "remove or rename all but one")
LEAKED = FindingKind(
    "training video again in another subset",
    "error",
    "the same content is trained on and tested: results would mean nothing; remove one",
)
DUPLICATE = FindingKind("duplicate video", "warning", "the same content counts twice; remove one")
READER = FindingKind(
    "read by the slower reader", "info", "nothing; an H.264 mp4 with closed GOPs would be faster"
)
UNEVEN = FindingKind(
    "frames at uneven times", "info", "nothing; truth is mapped by the frames' own times"
)
CLOCK = FindingKind(
    "clock that jumps",
    "warning",
    "each jump is taken for one frame's length; annotations made by a player that does otherwise "
    "are late or early after it: compare one, or make proxies (extract/transcode.py) and annotate "
    "these",
)
SIZES = FindingKind(
    "pictures of several sizes", "info", "nothing; all are scaled to the size of the first one"
)
UNNAMED = FindingKind(
    "file without annotations", "info", "nothing, unless its name is misspelt somewhere"
)
FRAMES = FindingKind(
    "number of frames other than annotated",
    "warning",
    "the file is believed; check that it is the video that was annotated",
)
RATE = FindingKind(
    "frame rate other than annotated",
    "warning",
    "the file is believed; check that it is the video that was annotated",
)


def check_missing_files(survey: Survey) -> Iterator[Finding]:
    """Yield videos without a file, names with two files, and files without annotations."""
    folder = Path(survey.config.data.videos)
    near = NearFiles(survey.folder)
    for video in survey.used:
        if video.name not in survey.folder:
            hint = near.describe(video.name)
            hint = hint or describe_no_videos(video.name, folder)
            text = f"{video.name}: no such file in {folder}{hint}"
            yield Finding(unless_skipped(MISSING, survey), text, video.name)
    for name, paths in survey.folder.items():
        if len(paths) > 1:
            text = f"{name}: {' and '.join(path.name for path in paths)}"
            yield Finding(TWO_FILES, text, name, numbers={"files": len(paths)})
    # A video whose record cannot be read is named there, too.
    named = {*survey.annotations.videos, *survey.config.data.blocked}
    named |= {note.video for note in survey.notes}
    for name, paths in survey.folder.items():
        if name not in named:
            yield Finding(UNNAMED, f"{paths[0].name}: no annotation names it", name)


def check_unreadable(survey: Survey) -> Iterator[Finding]:
    """Yield videos that do not decode, that hang their decoder, or whose end is missing."""
    for name, error in survey.unreadable.items():
        kind = HANGING if HANGS in str(error) else UNREADABLE
        yield Finding(unless_skipped(kind, survey), str(error), name)
    for name, file in survey.files.items():
        try:
            check_whole(file.path, file.frames, file.announced)
        except VideoError as error:
            numbers = {"frames": file.frames, "announced": file.announced}
            yield Finding(unless_skipped(CUT, survey), str(error), name, numbers=numbers)


def check_slow_readers(survey: Survey) -> Iterator[Finding]:
    """Yield videos that only PyAV reads exactly, and those of a variable frame rate."""
    for name, file in survey.files.items():
        if file.index.access != "indexed" and not file.index.torchcodec:
            how = "from its keyframes" if file.index.access == "seek" else "in sequence"
            turned = f", turned by {file.index.rotation}°" if file.index.rotation else ""
            text = f"{file.path.name}: PyAV reads it {how}{turned}, frame-exact"
            yield Finding(READER, text, name)
        if file.index.repaired:
            yield Finding(
                CLOCK,
                f"{file.path.name}: {file.index.describe_repair()}",
                name,
                numbers={"repaired": file.index.repaired, "frames": file.frames},
            )
        if file.index.other_size:
            (height, width), (other_height, other_width) = file.index.size, file.index.other_size
            sizes = f"{width} × {height} at first, then {other_width} × {other_height}"
            yield Finding(SIZES, f"{file.path.name}: {sizes}", name)
        if file.item is not None and file.item.times_s is not None:
            text = f"{file.path.name}: {file.index.fps:.2f} frames/s on average, not evenly"
            yield Finding(UNEVEN, text, name, numbers={"fps": file.index.fps})


def check_duplicates(survey: Survey) -> Iterator[Finding]:
    """Yield videos of the same content under two names; across subsets that is leakage."""
    data = survey.config.data
    first: dict[str, str] = {}
    for name, file in survey.files.items():
        twin = first.setdefault(file.digest, name)
        if twin == name:
            continue
        here, there = (survey.annotations.videos[n].subset for n in (name, twin))
        leaked = here != there and data.train_subset in (here, there)
        text = f"{name} ({here}) has the content of {twin} ({there})"
        yield Finding(LEAKED if leaked else DUPLICATE, text, name)


def check_sizes(survey: Survey) -> Iterator[Finding]:
    """Yield frame counts and rates in the annotations that are not the file's."""
    for name, file in survey.files.items():
        video, whole = survey.annotations.videos[name], file.announced == file.frames
        if video.frames is not None and whole and _differ(video.frames, file.frames, 0.02):
            text = f"{name}: {file.frames} frames, but {video.frames} in the annotations"
            numbers = {"frames": file.frames, "annotated": video.frames}
            yield Finding(FRAMES, text, name, numbers=numbers)
        if video.fps is not None and whole and _differ(video.fps, file.index.fps, 0.02):
            text = f"{name}: {file.index.fps:.2f} frames/s, but {video.fps:.2f} in the annotations"
            rates = {"fps": file.index.fps, "annotated": video.fps}
            yield Finding(RATE, text, name, numbers=rates)


def _differ(one: float, other: float, share: float) -> bool:
    """Return whether two numbers differ by more than rounding or another tool's way of counting."""
    return abs(one - other) > share * max(one, other)
