"""Times as people write them into tables: seconds, h:mm:ss, with a point or a comma."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]{1,2}(?:[.,][0-9]*)?)")
_ONE_MARK = re.compile(r"[-+]?([0-9]*)([.,])([0-9]+)")
_GROUPED = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+\.[0-9]+")
_SWAP = str.maketrans(",.", ".,")
COMMAS = "times with a decimal comma read as numbers"
GROUPS = "times with marks between thousands read as numbers"


def parse_clock(text: str) -> float:
    """Return `h:mm:ss` or `m:ss` in seconds, decimals after a point or a comma.

    Raises:
        ValueError: it is another text, or has 60 seconds or minutes after a colon; without place.
    """
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a time like 1:02:03.5")
    hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in found.groups())
    if seconds >= 60 or (found[1] and minutes >= 60):
        raise ValueError(f"in {text!r}, minutes and seconds after a colon must be below 60")
    return round(hours * 3600 + minutes * 60 + seconds, 6)


def parse_seconds(text: str) -> Any:
    """Return `h:mm:ss` or `m:ss` in seconds, and any other text unchanged, to be checked later."""
    try:
        return parse_clock(text)
    except ValueError:
        return text


class TimeReader:
    """Reads the times of one table, which are all written in one way.

    A comma or point with three digits after it may stand between thousands. It is the decimal mark
    if other times of the table say so; if none does, a point is, and a comma is in a table with
    semicolons between its cells, as spreadsheets write them where the comma is decimal.

    Args:
        cells: all times of the table.
        delimiter: what stands between its cells.
    """

    def __init__(self, cells: Iterable[str], delimiter: str) -> None:
        found = {mark for cell in cells if (mark := _mark(cell))}
        marks = {mark for mark, sure in found if sure} or {mark for mark, _ in found}
        sure = any(sure for _, sure in found)
        plain = sure or marks == {"."} or delimiter == ";"
        self._decimal = marks.pop() if len(marks) == 1 and plain else None
        self.notes: Counter[str] = Counter()

    def read(self, text: str, column: str, place: str) -> float | str | ValueError:
        """Return seconds, a text that is to be checked as a number, or the error that it is."""
        where = f"{place}: column {column!r}"
        if ":" in text:
            try:
                seconds = parse_clock(text)
            except ValueError as error:
                return ValueError(f"{where}: {error}.")
            self.notes[COMMAS] += "," in text
            return seconds
        if (found := _mark(text)) is not None:
            mark, sure = found
            if not sure and mark != self._decimal:
                whole, point = text.replace(mark, ""), text.replace(mark, ".")
                return ValueError(
                    f"{where}: {text!r} may be {point} or {whole}; write it with a decimal point "
                    "and no other mark."
                )
            self.notes[COMMAS] += mark == ","
            return text.replace(",", ".")
        for written in (text, text.translate(_SWAP)):
            if _GROUPED.fullmatch(written):
                self.notes[GROUPS] += 1
                return written.replace(",", "")
        try:
            finite = math.isfinite(float(text))
        except ValueError:
            finite = False
        if not finite:
            return ValueError(
                f"{where} must be a finite number, not {text!r:.60}; write seconds or h:mm:ss."
            )
        return text


def _mark(text: str) -> tuple[str, bool] | None:
    """Return the only mark in a number, and whether it is surely before its decimals."""
    found = _ONE_MARK.fullmatch(text)
    if found is None:
        return None
    groups = len(found[3]) == 3 and re.fullmatch("[1-9][0-9]{0,2}", found[1])
    return found[2], not groups
