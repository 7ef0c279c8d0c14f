"""Text files with one class each: THUMOS-14 (`BaseballPitch_val.txt`) and MultiTHUMOS.

A line is `video start end`, times in seconds; the file's name is the class, followed, for
THUMOS-14, by the subset. MultiTHUMOS has the subset in its videos' names alone.
"""

import re
from pathlib import Path

from evaluate.datasets.records import AnnotationSource, Dataset, subset_in, subset_of

_LINE = re.compile(r"\s*\S+\s+[-+.\d]+\s+[-+.\d]+\s*")
_CLASS_LINE = re.compile(
    r"\s*\d+\s+\S+(\s+\S*[^-+.\d\s]\S*)*\s*"
)  # names may have blanks, not times


def is_class_file(lines: list[str]) -> bool:
    """Return whether a text holds annotations: at least one line is `video start end`."""
    return any(_LINE.fullmatch(line) for line in lines)


def check_other_text(path: Path, lines: list[str]) -> None:
    """Raise ValueError unless a text beside class files is a list of classes or a readme."""
    filled = [line for line in lines if line.strip()]
    is_readme = re.search("readme|licen[cs]e", path.name.lower())
    if filled and not is_readme and not all(_CLASS_LINE.fullmatch(line) for line in filled):
        raise ValueError(
            f"{path}: no line of it is `video start end`; mend it, or move it out of the folder."
        )


def read_text_folder(lines: list[str], source: AnnotationSource, dataset: Dataset) -> None:
    """Add the annotations of one class."""
    label = source.path.stem
    front, _, back = label.rpartition("_")
    if front and subset_in(back):
        label = front
    for index, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        place = f"{source.path}: line {index}"
        with dataset.collect():
            if len(fields) != 3:
                raise ValueError(f"{place}: expected `video start end`, not {line.strip()!r:.60}.")
            name, start, end = fields
            video = dataset.video(name, subset_of(name, source, place), source.path, place)
            video.add(label, start, end, place)
