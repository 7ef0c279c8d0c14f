"""Checks of values from files; the errors name the place and the problem."""

import codecs
import difflib
import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.messages import truncated

_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_ZIP = b"PK\x03\x04"
_VARIANTS = {chr(code) for code in range(0xFE00, 0xFE10)}  # choose how a sign is drawn
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


class Refused(ValueError):
    """An entry that cannot be used; `kind` is the reason in a few words, `end_s` its end."""

    def __init__(self, kind: str, text: str, end_s: float | None = None) -> None:
        super().__init__(text)
        self.kind, self.end_s = kind, end_s


def raise_problems(problems: Sequence[ValueError]) -> None:
    """Raise all that is wrong at once: one problem as it is, several as one error with a list."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n  ".join(truncated([str(problem) for problem in problems]))
        raise ValueError(f"{len(problems)} problems:\n  {lines}")


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
    """Return a finite number, given as one or as a text; an error in its place is raised."""
    if isinstance(value, ValueError):
        raise value
    try:
        # Python reads `1_000`, too, which nobody else writes for a number.
        odd = isinstance(value, bool) or (isinstance(value, str) and "_" in value)
        found = math.nan if odd else float(value)
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
    """Return a name in one form of Unicode, without case, blanks, separators between words, or
    marks that are not seen, as those of zero width.
    """
    seen = "".join(c for c in name if not (unicodedata.category(c) == "Cf" or c in _VARIANTS))
    plain = "".join(unicodedata.normalize("NFKC", seen).casefold().split())

    def between(separators: re.Match[str]) -> str:
        around = plain[: separators.start()][-1:], plain[separators.end() :][:1]
        return "" if all(map(_is_of_word, around)) else separators[0]

    return re.sub("[_-]+", between, plain)


def group_by_spelling(
    names: Iterable[str], spell: Callable[[str], str] = normalise_spelling
) -> dict[str, list[str]]:
    """Return the names that differ in case, blanks or Unicode form alone, each group together.

    Args:
        spell: gives names that belong together the same text.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(spell(name), []).append(name)
    return groups


def group_spelled_alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of two or more names that differ in case, blanks or Unicode form alone."""
    return [tuple(group) for group in group_by_spelling(names).values() if len(group) > 1]


def show_alike(names: Sequence[str]) -> list[str]:
    """Return names as messages show them: by their codes where some look the same."""
    same = len(set(map(_composed, names))) < len(names)
    return [ascii(name) if same else repr(name) for name in names]


class NearFiles:
    """The files in a folder, to tell which one may be that of a video that seems to have none.

    Args:
        names: without their extension.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        return group_by_spelling(self._names)

    @cached_property
    def _by_letters(self) -> dict[str, list[str]]:
        # Tools that take uploads replace or leave out what is neither letter nor digit.
        return group_by_spelling(self._names, _letters)

    def describe(self, name: str) -> str:
        """Return the end of a message about a video: files whose names nearly match its name."""
        folder, _, last = name.replace("\\", "/").rpartition("/")
        stem = Path(last).stem
        spellings = dict.fromkeys((normalise_spelling(name), normalise_spelling(stem)))
        alike = [file for each in spellings for file in self._by_spelling.get(each, ())]
        if alike == [stem]:
            parts = (("the folder", folder), ("the extension", last != stem))
            extra = " and ".join(part for part, there in parts if there)
            return f"; leave out {extra} in the annotations"
        if not alike and (letters := _letters(name)):
            alike = self._by_letters.get(letters, [])
        if not alike:
            return ""
        same = any(_composed(file) in (_composed(name), _composed(stem)) for file in alike)
        unseen = ", which looks the same, but stores its accents in another form of Unicode"
        told = " and ".join(map(repr, alike))
        return f", but there is {told}{unseen if same else ''}: give both one name"


def _letters(name: str) -> str:
    return "".join(filter(_is_of_word, normalise_spelling(name)))


def _is_of_word(sign: str) -> bool:
    """Return whether a sign is a letter, a digit or, as vowels are in India, a mark on one."""
    return sign != "" and unicodedata.category(sign)[0] in "LMN"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def read_text(path: Path) -> str:
    """Return a text file's content, its line ends as they are.

    It is UTF-8, or UTF-16 with the mark that spreadsheets begin their "Unicode text" with.

    Raises:
        ValueError: there is no such file, or it is not text.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check its path.")
    content = path.read_bytes()
    if content.startswith(_ZIP):
        raise ValueError(
            f"{path} is a workbook or another packed file; export its sheet as 'CSV UTF-8'."
        )
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise _no_text(path, content[: error.start], content[error.start]) from error
    if "\0" in text:
        raise _no_text(path, text[: text.index("\0")].encode(), 0)
    return text


def _no_text(path: Path, before: bytes, byte: int) -> ValueError:
    line = before.count(b"\n") + 1
    return ValueError(
        f"{path} is not UTF-8 text (line {line}: byte 0x{byte:02x}); export or copy it again, from "
        "a spreadsheet as 'CSV UTF-8'."
    )


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: there is no such file, it is not JSON, or a key stands twice in an object.
    """
    text = read_text(path)
    repeated = False

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        found = dict(pairs)
        repeated = repeated or len(found) < len(pairs)
        return found

    try:
        content = json.loads(text, object_pairs_hook=as_dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export or copy it again.") from error
    if repeated:
        raise_problems([ValueError(f"{path}: {problem}") for problem in _repeated_keys(text)])
    return content


def _repeated_keys(text: str) -> Iterator[str]:
    """Yield where keys stand again in an object of valid JSON, in the order of the text."""
    inside: list[dict[str, int] | None] = []  # of every open object its keys, None for a list
    key = 0, ""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "{[":
            inside.append({} if mark == "{" else None)
        elif mark in "}]":
            inside.pop()
        elif mark != ":":
            key = token.start(), mark
        elif (keys := inside[-1]) is not None:
            place, name = key[0], json.loads(key[1])
            first = keys.setdefault(name, place)
            if first != place:
                again, before = _line_and_column(text, place), _line_and_column(text, first)
                yield f"{again}: {short_repr(name)} stands twice, first in {before}; keep one."


def _line_and_column(text: str, place: int) -> str:
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    return f"line {line}, column {column}"
