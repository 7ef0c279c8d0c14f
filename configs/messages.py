"""Texts for people: errors as one line, lists that are not too long, aligned tables."""

from collections.abc import Sequence

EXPECTED = (ValueError, FloatingPointError, MemoryError, OSError)
"""Errors whose text is meant for the user; anything else is a bug and keeps its traceback."""


def message(error: BaseException) -> str:
    """Return an error's text as one `error: …` line, without a worker process's traceback."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback" in text:
        text = text.rstrip().splitlines()[-1].split(": ", 1)[-1]
    return f"error: {text}"


MOST = 20


def truncated(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list too long to read, and how many more there are."""
    more = len(lines) - MOST
    return [*lines[:MOST], *([f"… and {more} more"] if more > 0 else [])]


def pad_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the cells of a table, every column as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(n) for cell, n in zip(row, widths, strict=True)] for row in rows]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, heads of columns first, which lines up in plain text, too."""
    head, *rest = pad_columns(rows)
    ruled = [head, ["-" * len(cell) for cell in head], *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
