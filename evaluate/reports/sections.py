"""Sections that every report ends with: where the time went, how to do it again, which files."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from evaluate.reports.launches import LAUNCHES, RUNNING, Launch
from evaluate.reports.page import REPORT, TABLES, Section, Table

FILES = {
    "last.pt": "checkpoint of the last epoch, from which --resume continues",
    "best.pt": "checkpoint of the epoch that was best on the validation videos",
    "config.yaml": "all settings, as they were in the end",
    "weights.json": "which pretrained weights were taken, tensor by tensor",
    "skipped_videos.json": "videos that could not be read, with causes",
    "metrics.jsonl": "losses, learning rates and validation scores, a line each",
    LAUNCHES: "commands, versions and times, launch by launch",
    "tensorboard": "the same curves for TensorBoard",
    "trackers.json": "the names of this run in other trackers",
    "log.txt": "the run's output",
    "predictions.json": "every detection: video, class, start and end in seconds, score",
    "metrics.json": "the scores",
    f"diagnosis/{REPORT}": "what goes wrong, in tables and figures (evaluate/diagnose.py)",
    "diagnosis.json": "every table of the diagnosis, for programs",
    "check.json": "every finding, for programs",
    "table.txt": "the table as text",
    "table.csv": "the table with every number, for spreadsheets",
    "table.json": "the table with every number, for programs",
    TABLES: "every table of this page, for programs",
}
STAGES = {
    "starting up": "indexing videos, building the network, loading weights",
    "passes": "computing activations that the cache did not have",
    "waiting for data": "reading and decoding videos, as far as it kept the network waiting",
    "steps": "the network's training steps",
    "validation": "detecting in validation videos and scoring",
    "checkpoints": "writing checkpoints",
    "detecting": "reading videos and running the network",
    "diagnosing": "comparing detections with the annotations, drawing",
    "checking": "indexing videos, comparing them with the annotations, drawing",
    "scoring": "comparing detections with the annotations",
    "runs": "training and scoring all runs of the grid",
    "comparing": "resampling videos, writing the table",
}


def evaluation_sections(
    out: Path,
    launch: Launch,
    config: str = "",
    skipped: Mapping[str, str] = MappingProxyType({}),
    run: Path | None = None,
) -> list[Section]:
    """Return the sections after the scores in an evaluation's report.

    Args:
        out: its folder.
        config: the resolved experiment, if there is one.
        skipped: videos that do not count, with causes.
        run: the folder of the training run; None if unknown.
    """
    report = find_report(run, out) if run else None
    above = [(report, "the report of the training run")] if report else []
    sections = [
        skipped_section(skipped),
        time_section([launch]),
        activations_section([launch]),
        repeat_section([launch]),
        settings_section(config) if config else None,
        files_section(out, above),
    ]
    return [section for section in sections if section]


def time_section(launches: Sequence[Launch]) -> Section:
    """Return where the time of all launches went, on their main process."""
    total: Counter[str] = Counter()
    for launch in launches:
        total.update(launch.seconds)
    whole = sum(total.values())
    killed = sum(launch.outcome == RUNNING for launch in launches)
    note = f"In all {format_duration(whole)}"
    note += f" in {len(launches)} launches" if len(launches) > 1 else ""
    note += f"; {killed} of them have no times, because they were killed" if killed else ""
    rows = [
        (name, STAGES.get(name, ""), round(seconds, 1), round(100 * seconds / (whole or 1), 1))
        for name, seconds in total.items()
    ]
    table = Table(
        "time", ("stage", "what it is", "seconds", "%"), rows, note=f"{note}.", digits=1, bars="%"
    )
    text = "Measured on the main process. A GPU may still work while the host waits for data."
    return Section("Where the time went", text, tables=[table])


def activations_section(launches: Sequence[Launch]) -> Section | None:
    """Return how often the cache had what was needed; None for runs without one."""
    rows: list[tuple[str, int, int, int]] = []
    for number, launch in enumerate(launches, 1):
        for when, (hits, partial, full) in launch.activations.items():
            name = when if len(launches) == 1 else f"launch {number}: {when}"
            rows.append((name, hits, partial, full))
    if not rows:
        return None
    text = (
        "The cache keeps what the backbone computes. A hit was read from it; a partial pass began "
        "at a stored block; a full pass began at the pixels."
    )
    table = Table("activations", ("when", "hits", "partial passes", "full passes"), rows)
    return Section("Cache hits", text, tables=[table])


def repeat_section(launches: Sequence[Launch]) -> Section:
    """Return the commands, and what they ran on."""
    commands = {
        "The exact command" if len(launches) == 1 else f"The exact command of launch {n}": (
            f"cd {shlex.quote(launch.folder)}\n{_lines(launch.command)}"
        )
        for n, launch in enumerate(launches, 1)
    }
    rows = [
        (
            n,
            launch.began,
            format_duration(sum(launch.seconds.values())),
            describe_outcome(launch),
            describe_machine(launch),
        )
        for n, launch in enumerate(launches, 1)
    ]
    columns = ("launch", "began", "took", "how it ended", "on")
    versions = {name: value for launch in launches for name, value in launch.versions.items()}
    versions |= {"git commit": launches[-1].commit} if launches[-1].commit else {}
    note = "+ after the commit: files had been changed since." if launches[-1].commit else ""
    tables = [
        Table("launches", columns, rows, "When and where"),
        Table("versions", ("software", "version"), list(versions.items()), "Versions", note),
    ]
    return Section("How to do it again", tables=tables, texts=commands)


def _lines(command: str) -> str:
    """Return a command with each of its options on a line of its own; it can be typed as it is."""
    words: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            words.append([])
        words[-1].append(word)
    return " \\\n    ".join(map(shlex.join, words))


def files_section(out: Path, others: Iterable[tuple[str, str]] = ()) -> Section:
    """Return the files beside the report.

    Args:
        others: paths relative to the folder, and what they are.
    """
    kinds = [(name, about) for name, about in FILES.items() if (out / name).exists()]
    streams = [(path.name, "one stream's detections") for path in sorted(out.glob("pred*-*.json"))]
    rows = [*kinds, *streams, *others]
    rows += [(path.name, "a figure") for path in sorted(out.glob("*.png"))]
    links = {name: quote(name) for name, _ in rows}
    return Section("Files", tables=[Table("files", ("file", "what it is"), rows, links=links)])


def settings_section(config: str) -> Section:
    """Return the resolved config, folded."""
    return Section("Settings", texts={"The resolved config, config.yaml": config}, folded=True)


def skipped_section(skipped: Mapping[str, str]) -> Section | None:
    """Return which videos do not count, and why; None if all do."""
    if not skipped:
        return None
    table = Table("skipped videos", ("video", "why"), list(skipped.items()))
    return Section("Videos left out", "They could not be read and do not count.", tables=[table])


def find_report(folder: Path, seen_from: Path) -> str | None:
    """Return the relative path of a folder's report, if it has one."""
    if not (folder / REPORT).is_file():
        return None
    return os.path.relpath((folder / REPORT).resolve(), seen_from.resolve())


def describe_outcome(launch: Launch) -> str:
    """Return how a launch ended."""
    return "still running, or killed" if launch.outcome == RUNNING else launch.outcome


def describe_machine(launch: Launch) -> str:
    """Return what a launch ran on."""
    devices = ", ".join(
        f"{count} × {name}" if count > 1 else name
        for name, count in Counter(launch.devices).items()
    )
    return f"{launch.processes} process{'es' if launch.processes > 1 else ''}; {devices or 'CPU'}"


def format_duration(seconds: float) -> str:
    """Return seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
