"""Texts for people."""

from collections.abc import Sequence

MOST = 20


def first_of(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list too long to read, and how many more there are."""
    more = len(lines) - MOST
    return [*lines[:MOST], *([f"… and {more} more"] if more > 0 else [])]
