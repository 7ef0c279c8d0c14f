"""The form that every format is converted to: ActivityNet's layout, with the place of each part."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

_SUBSETS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass
class Record:
    """One video, unchecked.

    where: its file and name, for messages.
    content: as in ActivityNet's files, {"subset", "duration", "frame", "fps", "annotations":
        [{"segment": [start, end], "label"}]}: only the subset is needed, numbers may be texts.
    places: where each annotation was read, for messages; if empty, their indices are used.
    """

    where: str
    content: Any
    places: list[str] = field(default_factory=list)

    def add(self, label: str, start: Any, end: Any, place: str) -> None:
        """Add an annotation, times in seconds."""
        self.content["annotations"].append({"segment": [start, end], "label": label})
        self.places.append(place)


@dataclass
class Dataset:
    """The videos of all files, and counts of what was tolerated, by a phrase for it."""

    records: dict[str, Record] = field(default_factory=dict)
    warnings: Counter[str] = field(default_factory=Counter)

    def video(self, name: str, subset: str, path: Path, place: str) -> Record:
        """Return the record of a video that is read piece by piece.

        Raises:
            ValueError: earlier pieces put it into another subset.
        """
        if name not in self.records:
            content = {"subset": subset, "annotations": []}
            self.records[name] = Record(f"{path}: video {name!r}", content)
        record = self.records[name]
        if record.content["subset"] != subset:
            raise ValueError(
                f"{place}: video {name!r} is in subset {subset!r} here, but in "
                f"{record.content['subset']!r} before ({record.where}); put it into one of them."
            )
        return record

    def whole_video(self, name: str, record: Record) -> None:
        """Add a video whose annotations are read at once.

        Raises:
            ValueError: it is there already.
        """
        if name in self.records:
            raise ValueError(
                f"{record.where} is listed twice, first in {self.records[name].where}; remove one."
            )
        self.records[name] = record


class AnnotationSource(NamedTuple):
    """A file with annotations.

    subset: from the names of the file and its folders; None if they name none.
    in_folder: found in a folder, not named itself.
    classes: the file with the class names, if there is one.
    """

    path: Path
    subset: str | None
    in_folder: bool
    classes: Path | None


def subset_in(name: str) -> str | None:
    """Return the subset that a name's last word for one means, as in `BaseballPitch_val`."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((_SUBSETS[word] for word in reversed(words) if word in _SUBSETS), None)


def subset_of(video: str, source: AnnotationSource, place: str) -> str:
    """Return the subset that the file, its folders or the video's name gives.

    Raises:
        ValueError: none of them does.
    """
    found = source.subset or subset_in(video)
    if found is None:
        raise ValueError(
            f"{place}: neither the file's name nor that of video {video!r} gives its subset; "
            "put train, val or test into the file's name, as in actions_train.csv."
        )
    return found
