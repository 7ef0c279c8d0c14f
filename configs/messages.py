"""Texts for users: errors as one line, truncated lists, aligned tables."""

from collections.abc import Sequence

EXPECTED = (ValueError, FloatingPointError, MemoryError, OSError)
"""Errors whose text is meant for the user; anything else is a bug and keeps its traceback."""


def format_error(error: BaseException) -> str:
    """Return an error's text as one `error: …` line, without a worker process's traceback."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback" in text:
        text = text.rstrip().splitlines()[-1].split(": ", 1)[-1]
    return f"error: {text}"


MAX_LINES = 20


def truncated(lines: Sequence[str]) -> list[str]:
    """Return the lines, or of a long list the first ones and how many more there are."""
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
