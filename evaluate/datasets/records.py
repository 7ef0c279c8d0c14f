"""The form that every format is converted to: ActivityNet's layout, with the place of each part."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from evaluate.datasets.fields import normalise_spelling

_SUBSETS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
TEST_SHARE = 5  # one video in so many goes to the test subset, if no subset is given
BY_CHANCE = "videos put into 'training' or 'test' by their names, for want of a column 'subset'"
# Endings of video files: what stands before them is the video's name.
_ENDING = re.compile(
    r"(3g2|3gp|asf|avi|f4v|flv|gif|m2ts|m2v|m4v|mkv|mov|mp4|mpeg|mpg|mts|mxf|ogg|ogm|ogv|qt|rm|ts"
    r"|vob|webm|wmv)",
    re.IGNORECASE,
)


@dataclass
class Record:
    """One video, unchecked.

    where: its file and name, for messages.
    content: as in ActivityNet's files, {"subset", "duration", "frame", "fps", "annotations":
        [{"segment": [start, end], "label"}]}: only the subset is needed, numbers may be texts.
    places: where each annotation was read, for messages; if empty, their indices are used.
    steady: where times are in frames, these are evenly spaced whatever the file's are.
    """

    where: str
    content: Any
    places: list[str] = field(default_factory=list)
    steady: bool = False

    def add(self, label: str, start: Any, end: Any, place: str) -> None:
        """Add an annotation, times in seconds."""
        self.content["annotations"].append({"segment": [start, end], "label": label})
        self.places.append(place)

    def add_frames(self, label: str, first: float, end: float, place: str) -> None:
        """Add an annotation from a frame, counted from 0, to before another."""
        self.content["annotations"].append({"frames": [first, end], "label": label})
        self.places.append(place)

    @property
    def in_frames(self) -> list[dict[str, Any]]:
        """The annotations that were added in frames."""
        # Other formats hand on their content unchecked.
        content = self.content if self.places else {"annotations": []}
        return [entry for entry in content["annotations"] if "frames" in entry]


@dataclass
class Dataset:
    """The videos of all files.

    Args:
        warnings: counts of what was tolerated, by a phrase for it.
        problems: what cannot be read, told at once when all files are read.
    """

    records: dict[str, Record] = field(default_factory=dict)
    warnings: Counter[str] = field(default_factory=Counter)
    problems: list[ValueError] = field(default_factory=list)
    _files: dict[str, str] = field(default_factory=dict)  # as they are given, by name
    _by_chance: set[str] = field(default_factory=set)
    _subsets: Counter[str] = field(default_factory=Counter)  # as they are spelled in tables

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Go on after an error in a row or an entry, and keep it for the end."""
        try:
            yield
        except ValueError as error:
            self.problems.append(error)

    def name_of_file(self, given: str, place: str) -> str:
        """Return the name of a video that is given by its file, without folder and ending.

        A text without the ending of a video file is a name already.

        Raises:
            ValueError: another file has the same name.
        """
        file = given.replace("\\", "/").rpartition("/")[2]
        name, _, ending = file.rpartition(".")
        if not name or not _ENDING.fullmatch(ending):
            return given
        other = self._files.setdefault(name, given)
        if other != given:
            raise ValueError(
                f"{place}: {given!r} and {other!r} are different files, but both are called "
                f"{name!r}; give them different names."
            )
        return name

    def choose_subset(self, name: str, source: "AnnotationSource") -> str:
        """Return the subset of a video that has none: its file's in a folder, else by its name."""
        if source.in_folder and source.subset:
            return source.subset
        self._by_chance.add(name)
        return (
            "test"
            if zlib.crc32(name.encode(errors="backslashreplace")) % TEST_SHARE == 0
            else "training"
        )

    def finish(self) -> None:
        """Settle what only all files together tell; to be called once."""
        if self._by_chance:
            self.warnings[BY_CHANCE] += len(self._by_chance)
        spellings: dict[str, list[str]] = {}
        for subset in self._subsets:
            spellings.setdefault(_subset_meaning(subset), []).append(subset)
        for alike in spellings.values():
            if len(alike) > 1:
                # A usual word, if there is one; of several the most frequent.
                best = max(alike, key=lambda word: (word in _SUBSETS, self._subsets[word]))
                for record in self.records.values():
                    if record.content["subset"] in alike:
                        record.content["subset"] = best
                others = ", ".join(repr(word) for word in alike if word != best)
                count = sum(self._subsets[word] for word in alike if word != best)
                self.warnings[f"rows with the subset {others} read as {best!r}"] += count

    def video(self, name: str, subset: str, path: Path, place: str) -> Record:
        """Return the record of a video that is read piece by piece.

        Raises:
            ValueError: earlier pieces put it into another subset.
        """
        if name not in self.records:
            content = {"subset": subset, "annotations": []}
            self.records[name] = Record(f"{path}: video {name!r}", content)
        record = self.records[name]
        self._subsets[subset] += 1
        if _subset_meaning(record.content["subset"]) != _subset_meaning(subset):
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


def _subset_meaning(subset: str) -> str:
    """Return what different spellings of a subset have in common."""
    plain = normalise_spelling(subset)
    return _SUBSETS.get(plain, plain)


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
