"""How a run was launched, each time: command, versions, devices, and how it ended."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from configs.atomic import write_text

LAUNCHES = "launches.json"
RUNNING = "running"
FINISHED = "finished"
INTERRUPTED = "interrupted"
PACKAGES = ("palindrome", "torch", "accelerate", "torchvision", "timm", "numpy", "av", "decord")
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Launch:
    """One launch of a run.

    Args:
        command: as it can be typed again in `folder`.
        began: local date and time with the offset to UTC.
        outcome: running, finished, interrupted, or why it failed; running, too, if it was killed.
        seconds: by stage (`Stopwatch`).
        about: what it worked on, by name, in numbers and words.
        activations: how they came about, by when: [cached, partial passes, full passes].
        commit: of the code's repository, with a `+` if files were changed.
    """

    command: str
    folder: str
    began: str
    processes: int
    devices: tuple[str, ...]
    versions: Mapping[str, str]
    commit: str | None
    outcome: str = RUNNING
    seconds: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, Sequence[int]] = field(default_factory=dict)


def new_launch(processes: int = 1, devices: Sequence[str] = ()) -> Launch:
    """Describe this process: the command it was started with, and the software it runs on."""
    return Launch(
        command=repeat_command(sys.argv, _parent()),
        folder=str(Path.cwd()),
        began=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        processes=processes,
        devices=tuple(devices),
        versions={"Python": platform.python_version()} | _versions(),
        commit=_commit(),
    )


def read_launches(folder: Path) -> list[Launch]:
    """Return the records of a run's launches; none if they cannot be read."""
    try:
        return [Launch(**each) for each in json.loads((folder / LAUNCHES).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def write_launches(folder: Path, launches: Sequence[Launch]) -> None:
    """Write the records of a run's launches."""
    text = json.dumps([asdict(launch) for launch in launches], indent=1, ensure_ascii=False)
    write_text(folder / LAUNCHES, text + "\n")


def repeat_command(arguments: Sequence[str], parent: Sequence[str]) -> str:
    """Return a command line that repeats what this process does.

    Args:
        arguments: of the script, itself first.
        parent: the parent process's: a launcher's command ends with the script's.
    """
    if arguments[0].startswith("palindrome "):  # the installed command, see configs/command.py
        return shlex.join([*arguments[0].split(), *arguments[1:]])
    whole = ["python", *arguments]
    before = list(parent[: -len(arguments)])
    if before and list(parent[-len(arguments) :]) == list(arguments):
        program = Path(before[0]).name
        if program.startswith("python") and len(before) > 1 and not before[1].startswith("-"):
            before = before[1:]  # `accelerate` and `torchrun` are scripts, which Python runs
        whole = [Path(before[0]).name, *before[1:], *arguments]
    return shlex.join(whole)


def _parent() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
    except (OSError, UnicodeDecodeError):
        return []  # no /proc, or no permission


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    if not (REPOSITORY / ".git").exists():
        return None
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
