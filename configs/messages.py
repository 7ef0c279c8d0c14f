"""Texts for users: errors as one line, truncated lists, aligned tables."""

import re
from collections.abc import Sequence

EXPECTED = (ValueError, FloatingPointError, MemoryError, OSError)
"""Errors whose text is meant for the user; anything else is a bug and keeps its traceback."""


_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Control sequences for a terminal (ECMA-48), such as colours, that libraries put into messages."""


def format_error(error: BaseException) -> str:
    """Return an error's text as one `error: …` line, without a worker process's traceback."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback" in text:
        text = text.rstrip().splitlines()[-1].split(": ", 1)[-1]
    return f"error: {without_escapes(text)}"


def without_escapes(text: str) -> str:
    """Return a text without control sequences for a terminal."""
    return _ESCAPES.sub("", text)


def plain_line(text: str, limit: int = 160) -> str:
    """Return another program's text as one line, without control sequences for a terminal.

    Args:
        limit: characters; a longer text is cut after a word and ends with an ellipsis.
    """
    words = "".join(c if c.isprintable() else " " for c in without_escapes(text)).split()
    line = " ".join(words)
    if len(line) <= limit:
        return line
    cut = line[: limit - 1]
    whole = cut.rpartition(" ")[0]
    return f"{whole} …" if whole else f"{cut}…"


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: 1 video, 2,000 videos.

    Args:
        plural: of the noun; None: with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


BYTES = ("kB", "MB", "GB")


def format_bytes(count: float) -> str:
    """Return a number of bytes with the unit that fits it: 0 B, 87.3 kB, 1.5 GB."""
    power = 0
    while round(count, 1) >= 1000 and power < len(BYTES):
        count, power = count / 1000, power + 1
    return f"{count:,.1f} {BYTES[power - 1]}" if power else f"{count:.0f} B"


MAX_LINES = 20


def truncated(lines: Sequence[str]) -> list[str]:
    """Return the lines; of a long list, the first ones and how many more there are."""
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"… and {more} more"] if more > 0 else [])]


def pad_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the cells of a table, every column padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(n) for cell, n in zip(row, widths, strict=True)] for row in rows]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its header row first, that is aligned in plain text, too."""
    head, *rest = pad_columns(rows)
    ruled = [head, ["-" * len(cell) for cell in head], *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
