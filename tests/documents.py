"""What the README and the pages in docs/ say: their commands, code, links, files and settings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
SETTINGS = REPOSITORY / "docs/settings.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
WRITTEN = [*(page for page in PAGES if page != SETTINGS), REPOSITORY / "ARCHITECTURE.md"]

FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)
ASSIGNMENTS = re.compile(r"(\w+=[^\s;]+(; *|$))+")
# Words that a reader puts something in place of: FILE, VIDEO.mp4, RANK, K400.pyth, F.pt.
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)?")


class Command(NamedTuple):
    """One command of a page, its variables replaced, its comment removed."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"

    @property
    def has_placeholder(self) -> bool:
        """Whether a reader has to put something into it."""
        return any(PLACEHOLDER.fullmatch(word) for word in self.words)


def fenced(page: Path, kind: str) -> list[str]:
    """Return the blocks of a page between fences of a language."""
    blocks = []
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match["kind"] == kind:
            lines = match["body"].splitlines()
            blocks.append("\n".join(line.removeprefix(match["indent"]) for line in lines))
    return blocks


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """Return what stands between backquotes, over line ends, too."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def shell_commands(page: Path) -> Iterator[Command]:
    """Yield the commands in the shell blocks of a page, which a reader gives to one shell."""
    name = page.relative_to(REPOSITORY).as_posix()
    variables: dict[str, str] = {}
    for block in fenced(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if ASSIGNMENTS.fullmatch(line.strip()):
                variables |= dict(part.split("=", 1) for part in re.findall(r"\w+=[^\s;]+", line))
            elif words := shlex.split(Template(line).safe_substitute(variables), comments=True):
                yield Command(name, tuple(words))


def inline_commands(page: Path) -> Iterator[Command]:
    """Yield the commands in the text of a page."""
    name = page.relative_to(REPOSITORY).as_posix()
    for code in inline_code(page):
        if re.match(r"(\w+=\S+ )?(python|accelerate launch|make) ", code):
            yield Command(name, tuple(shlex.split(re.sub(r"\[(.*)\]$", r"\1", code))))


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings in links."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    words = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in words}
