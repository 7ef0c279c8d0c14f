"""Checks of values from files; the errors name the place and the problem."""

import difflib
import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class Refused(ValueError):
    """An entry that cannot be used; `kind` is the reason in a few words, `end_s` its end."""

    def __init__(self, kind: str, text: str, end_s: float | None = None) -> None:
        super().__init__(text)
        self.kind, self.end_s = kind, end_s


def short_repr(value: Any) -> str:
    """Return a value as messages show it: short, however long or deep it is."""
    return _SHORT.repr(value)


def get_field(record: Any, key: str, where: str, kind: type = dict) -> Any:
    """Return a member of a JSON object; ValueError if it is missing or of another kind."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with {key!r}, not {short_repr(record)}.")
    if key not in record:
        raise ValueError(f"{where}: {key!r} is missing; it must be {_KINDS[kind]}.")
    if not isinstance(record[key], kind):
        raise ValueError(f"{where}: {key!r} must be {_KINDS[kind]}, not {short_repr(record[key])}.")
    return record[key]


def as_segment(entry: Any, where: str) -> tuple[float, float]:
    """Return an entry's `segment`: two finite numbers, the second not below the first."""
    pair = get_field(entry, "segment", where, kind=list)
    if len(pair) != 2:
        raise ValueError(
            f"{where}: 'segment' must be [start, end] in seconds, not {short_repr(pair)}."
        )
    start_s, end_s = (as_number(value, "segment", where) for value in pair)
    if end_s < start_s:
        text = f"{where}: the segment ends at {end_s} s, before its start {start_s} s."
        raise Refused("reversed segment", text)
    return start_s, end_s


def as_number(value: Any, what: str, where: str) -> float:
    """Return a finite number, given as one or as a text."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{where}: {what} must be a finite number, not {short_repr(value)}.")
    return found


def as_positive(value: Any, what: str, where: str) -> float:
    """Return a finite number above 0."""
    found = as_number(value, what, where)
    if found <= 0:
        raise ValueError(f"{where}: {what} must be above 0, not {found}.")
    return found


def as_int(value: float, what: str, where: str) -> int:
    """Return a number without a fraction."""
    if not value.is_integer():
        raise ValueError(f"{where}: {what} must be a whole number of frames, not {value}.")
    return int(value)


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return the end of a message about a wrong name: the nearest right one."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."


def normalise_spelling(name: str) -> str:
    """Return a name in one form of Unicode, without case or separators between words."""
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", "", plain)


def group_by_spelling(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that differ in case, blanks or Unicode form alone, each group together."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(normalise_spelling(name), []).append(name)
    return groups


def group_spelled_alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of two or more names that differ in case, blanks or Unicode form alone."""
    return [tuple(group) for group in group_by_spelling(names).values() if len(group) > 1]


def describe_near_files(name: str, files: Mapping[str, list[str]]) -> str:
    """Return the end of a message about a video without a file: files whose names nearly match.

    Args:
        files: names without their extension, by their spelling (`group_by_spelling`).
    """
    stem = Path(name).stem
    spellings = dict.fromkeys((normalise_spelling(name), normalise_spelling(stem)))
    alike = [file for each in spellings for file in files.get(each, ())]
    if alike == [stem]:
        return "; leave out the extension in the annotations"
    return f", but there is {' and '.join(map(repr, alike))}: give both one name" if alike else ""


def read_text(path: Path) -> str:
    """Return a text file's content, its line ends as they are.

    Raises:
        ValueError: there is no such file, or it is no text.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check its path.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); export or copy it again.") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: there is no such file, or it is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export or copy it again.") from error
