"""Text files that appear whole or not at all."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write aside and rename: a kill leaves the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
