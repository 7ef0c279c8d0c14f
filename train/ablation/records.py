"""Records of a grid's runs: a small file in each run's folder, and digests of what made it."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.atomic import write_text
from configs.loader import base_of, dump, find_config
from extract.identity.digest import video_digest as content_digest
from train.ablation.grid import Grid, Run

RECORD = "run.json"
TABLES = ("table.txt", "table.csv", "table.png", "report.html", "table.json")
RESULTS = ("metrics.json", "predictions.json")


@dataclass(frozen=True)
class RunRecord:
    """How far a run has come.

    Args:
        training: digest of what decides its training; `trained`: whether that is done.
        seconds: that training took, without launches that were killed.
        scored: digest of what decided its scores, empty before there are any.
        error: why it failed; `session`: the launch in which it did.
    """

    training: str
    trained: bool = False
    seconds: float = 0.0
    scored: str = ""
    error: str = ""
    session: str = ""


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a run; None if there is none that can be read."""
    try:
        return RunRecord(**json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(folder: Path, record: RunRecord) -> None:
    """Write how far a run has come."""
    write_text(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")


def training_digest(grid: Grid, run: Run) -> str:
    """Return a digest of what decides a run's weights; the runs it builds on must be done.

    Names of folders and the cache do not count: a study that was moved is the same study.
    """
    row = grid.rows[run.row]
    inputs = {
        option: [content_digest(grid.folder(each) / "last.pt") for each in runs]
        for option, runs in grid.inputs(run).items()
    }
    overrides = grid.settings(run)
    files = [value for value in overrides.values() if isinstance(value, str)]
    config = find_config(row.config) if row.config else None
    base = base_of(config) if config else None
    under = {"base": content_digest(base)} if base else {}
    return _digest(
        script=row.script,
        config=content_digest(config) if config else None,
        **under,
        overrides=overrides,
        # Annotations may change under the same name.
        files=[content_digest(file) for file in files if Path(file).is_file()],
        seed=run.seed,
        inputs=inputs,
    )


def scoring_digest(grid: Grid, run: Run) -> str:
    """Return a digest of what decides the scores of a run that is trained."""
    checkpoint = content_digest(grid.folder(run) / "last.pt")
    return _digest(checkpoint=checkpoint, subsets=grid.subsets, tious=grid.tious)


def remaining_work(grid: Grid, run: Run, training: str) -> str:
    """Return in words what a run whose inputs are done still needs; nothing if it is done.

    Args:
        training: its `training_digest`.
    """
    folder = grid.folder(run)
    record = read_record(folder)
    if record is None:
        return "new"
    if reason := _reason_to_restart(folder, record, training):
        return reason
    if not record.trained:
        return f"once more: {record.error}" if record.error else "goes on"
    there = all((folder / subset / name).is_file() for subset in grid.subsets for name in RESULTS)
    if not there or record.scored != scoring_digest(grid, run):
        return f"scores, once more: {record.error}" if record.error else "scores"
    return ""


def status(grid: Grid, runs: Sequence[Run]) -> dict[Run, str]:
    """Return in words what each run needs, those that others build on first; nothing if done."""
    words: dict[Run, str] = {}
    for run in runs:
        if waits := [str(each) for each in grid.needs(run) if words[each]]:
            words[run] = f"after {', '.join(waits)}"
        else:
            words[run] = remaining_work(grid, run, training_digest(grid, run))
    return words


def check_own_run(grid: Grid, runs: Sequence[Run]) -> None:
    """Raise ValueError if a run's folder holds what no grid has made."""
    for folder in map(grid.folder, runs):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, but a run's folder in this grid; choose `out`")
        # A killed process may have left half a record.
        found = any(not file.match(f"{RECORD}.*part") for file in folder.glob("*"))
        if found and read_record(folder) is None:
            raise ValueError(
                f"{folder} holds a run that this script did not make (it has no {RECORD}); move it "
                "away, or choose another `out`"
            )


def prepare(grid: Grid, run: Run, training: str) -> RunRecord:
    """Make a run's folder ready to begin or go on; remove what was made of other inputs."""
    folder = grid.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    record = read_record(folder)
    if record is None or _reason_to_restart(folder, record, training):
        # The old record is replaced last: if this is interrupted, it is begun again.
        for path in folder.iterdir():
            if path.name != RECORD:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        record = RunRecord(training)
    record = RunRecord(training, record.trained, record.seconds)
    for subset in grid.subsets:
        shutil.rmtree(folder / subset, ignore_errors=True)
    write_record(folder, record)
    return record


def _reason_to_restart(folder: Path, record: RunRecord, training: str) -> str:
    """Return in words why a run cannot go on from what its folder holds; nothing if it can."""
    if record.training != training:
        return "again: its settings or what it builds on have changed"
    if record.trained and not (folder / "last.pt").is_file():
        return "again: its last.pt is gone"
    return ""


def table_inputs(grid: Grid, failed: Mapping[Run, str], files: Sequence[Path]) -> dict[str, Any]:
    """Return what a table was made from: the grid, why runs are not done, states of files."""
    states = {str(file): file.stat() for file in files}
    return {
        "grid": dump(grid),
        "failed": {str(run): cause for run, cause in failed.items()},
        "files": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
    }


def is_current(grid: Grid, failed: Mapping[Run, str]) -> bool:
    """Return whether a grid's table is there and nothing has changed since."""
    if not all((grid.root / name).is_file() for name in TABLES):
        return False
    try:
        kept = json.loads((grid.root / "table.json").read_text())["made_from"]
        return bool(kept == table_inputs(grid, failed, [Path(file) for file in kept["files"]]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # whatever it is, it is made again


def _digest(**parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
