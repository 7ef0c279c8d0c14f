"""A grid of runs: rows of a table, each trained with several seeds; read from YAML and ordered."""

import difflib
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from configs.loader import UniqueKeys

T = TypeVar("T")

SCORING = "evaluate/run.py"
SET_BY_GRID = ("out", "training.seed", "cache.url")


class Reference(NamedTuple):
    """The run of another row with the same seed, or with that `shift` places further (cyclic)."""

    row: str
    shift: int


class Run(NamedTuple):
    """One training with one seed; its text names its folder in the grid's `out`."""

    row: str
    seed: int

    def __str__(self) -> str:
        return f"{self.row}/{self.seed}"


@dataclass(frozen=True)
class Row:
    """What the runs of one row of the table share.

    Args:
        script: trains; `config`: its YAML file, None where the checkpoints bring it.
        checkpoint, forward_from, reversed_from: runs whose last.pt it builds on.
        overrides: values of settings by their dotted names, those for all rows included.
    """

    script: str
    config: str | None = None
    checkpoint: tuple[Reference, ...] = ()
    forward_from: Reference | None = None
    reversed_from: Reference | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, tuple[Reference, ...]]:
        """What it builds on by the option that is given it, without those that are not."""
        options = {
            "--checkpoint": self.checkpoint,
            "--forward-from": (self.forward_from,) if self.forward_from else (),
            "--reversed-from": (self.reversed_from,) if self.reversed_from else (),
        }
        return {option: found for option, found in options.items() if found}


@dataclass(frozen=True)
class Grid:
    """All rows of a table and how they are scored.

    Args:
        out: a folder per run stands in it, `<row>/<seed>`; `cache`: the store they share.
        subset: is scored; `selection`: is scored, too, and says which fusion is best.
        tious: overlaps to print; `average`: those of them that are averaged.
        singles: rows that are single streams; `controls`: rows that must not be better for their
            fusion; all others are fusions.
    """

    out: Path
    cache: str
    seeds: tuple[int, ...]
    subset: str
    selection: str
    tious: tuple[float, ...]
    average: tuple[float, ...]
    rows: dict[str, Row]
    singles: tuple[str, ...]
    controls: tuple[str, ...]

    @property
    def subsets(self) -> tuple[str, ...]:
        """What is scored, each once."""
        return tuple(dict.fromkeys((self.subset, self.selection)))

    @property
    def fusions(self) -> list[str]:
        """The rows that are neither single streams nor controls."""
        return [name for name in self.rows if name not in (*self.singles, *self.controls)]

    def runs(self) -> list[Run]:
        """All runs, those that others build on first, otherwise as in the file."""
        ordered: list[str] = []
        while len(ordered) < len(self.rows):  # a cycle was refused when the file was read
            ordered.append(
                next(
                    name
                    for name, row in self.rows.items()
                    if name not in ordered and _needed(row) <= set(ordered)
                )
            )
        return [Run(name, seed) for name in ordered for seed in self.seeds]

    def folder(self, run: Run) -> Path:
        """Where a run leaves its results."""
        return self.out / run.row / str(run.seed)

    def inputs(self, run: Run) -> dict[str, list[Run]]:
        """The runs that a run builds on, by the option that names their checkpoints."""
        place = self.seeds.index(run.seed)
        return {
            option: [
                Run(name, self.seeds[(place + shift) % len(self.seeds)])
                for name, shift in references
            ]
            for option, references in self.rows[run.row].inputs.items()
        }

    def training(self, run: Run) -> list[str]:
        """The command that trains a run, without the interpreter."""
        row = self.rows[run.row]
        words = [row.script, *(["--config", row.config] if row.config else []), "--resume"]
        words += ["--out", str(self.folder(run)), "--training.seed", str(run.seed)]
        words += ["--cache", self.cache]
        for option, inputs in self.inputs(run).items():
            words += [option, *(str(self.folder(each) / "last.pt") for each in inputs)]
        # One word each: a value may begin with a minus.
        return words + [f"--{name}={_text_of(value)}" for name, value in row.overrides.items()]

    def scoring(self, run: Run, subset: str) -> list[str]:
        """The command that scores a trained run, without the interpreter."""
        folder = self.folder(run)
        words = [SCORING, "--checkpoint", str(folder / "last.pt"), "--cache", self.cache]
        words += ["--subset", subset, "--tious", *(f"{tiou:g}" for tiou in self.tious)]
        return [*words, "--out", str(folder / subset)]


def read_grid(path: Path) -> Grid:
    """Read a grid file; what it looks like stands on top of train/ablate.py.

    Raises:
        ValueError: it is missing or malformed; a key or row is unknown (the nearest right name is
            given), a value has the wrong type, rows wait for each other, a file is not there.
    """
    if not path.is_file():
        raise ValueError(f"no grid at {path}; train/ablate.py says what one looks like")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    try:
        grid = _grid(content)
        _refuse_cycles(grid)
        _refuse_same_folders(grid)
        _refuse_missing_files(grid)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return grid


def _grid(content: Any) -> Grid:
    required = ("out", "cache", "seeds", "subset", "selection", "tious", "average", "rows")
    settings = _mapping(content, "the grid", (*required, "overrides", "singles", "controls"))
    for name in required:
        if name not in settings:
            raise ValueError(f"'{name}' is missing")
    rows = _mapping(settings["rows"], "rows")
    for name in rows:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"rows: '{name}' names a folder; use letters, digits, '_' and '-'")
    overrides = _overrides(settings.get("overrides", {}), "overrides")
    tious = _distinct(settings["tious"], "tious", _tiou)
    average = _distinct(settings["average"], "average", _tiou)
    if not set(average) <= set(tious):
        raise ValueError("average: only overlaps that are among 'tious' can be averaged")
    seeds = _distinct(settings["seeds"], "seeds", _seed)
    singles, controls = (
        _distinct(settings.get(name, []), name, lambda value, where: _known(value, rows, where))
        if settings.get(name)
        else ()
        for name in ("singles", "controls")
    )
    both = set(singles) & set(controls)
    if both:
        raise ValueError(f"'{min(both)}' is among singles and controls; it can be one of them")
    return Grid(
        out=Path(_text(settings["out"], "out")),
        cache=_text(settings["cache"], "cache"),
        seeds=seeds,
        subset=_text(settings["subset"], "subset"),
        selection=_text(settings["selection"], "selection"),
        tious=tious,
        average=average,
        rows={
            name: _row(row, f"rows.{name}", rows, seeds, overrides) for name, row in rows.items()
        },
        singles=singles,
        controls=controls,
    )


def _row(
    content: Any, where: str, rows: Collection[str], seeds: Sequence[int], common: dict[str, Any]
) -> Row:
    keys = ("script", "config", "checkpoint", "forward_from", "reversed_from", "overrides")
    settings = _mapping(content, where, keys)
    if "script" not in settings:
        raise ValueError(f"{where}: 'script' is missing; it trains the row's runs")

    def reference(key: str) -> Reference | None:
        value = settings.get(key)
        return None if value is None else _reference(value, f"{where}.{key}", rows, seeds)

    checkpoint = settings.get("checkpoint", [])
    if not isinstance(checkpoint, list):
        checkpoint = [checkpoint]
    config = settings.get("config")
    if config is None and not checkpoint:
        raise ValueError(f"{where}: give 'config', 'checkpoint' or both")
    return Row(
        script=_text(settings["script"], f"{where}.script"),
        config=None if config is None else _text(config, f"{where}.config"),
        checkpoint=tuple(
            _reference(each, f"{where}.checkpoint", rows, seeds) for each in checkpoint
        ),
        forward_from=reference("forward_from"),
        reversed_from=reference("reversed_from"),
        overrides=common | _overrides(settings.get("overrides", {}), f"{where}.overrides"),
    )


def _reference(value: Any, where: str, rows: Collection[str], seeds: Sequence[int]) -> Reference:
    name, plus, shift = _text(value, where).partition("+")
    if plus and not shift.isdecimal():
        raise ValueError(f"{where}: '{value}': behind the + stands how many seeds further")
    row = _known(name, rows, where)
    if plus and int(shift) % len(seeds) == 0:
        raise ValueError(
            f"{where}: '{value}' is '{row}' of the same seed, for of seeds there are {len(seeds)}; "
            "give more of them or another number"
        )
    return Reference(row, int(shift or 0))


def _overrides(value: Any, where: str) -> dict[str, Any]:
    overrides = _mapping(value, where)
    for name, setting in overrides.items():
        if name in SET_BY_GRID:
            raise ValueError(f"{where}: '{name}' cannot be overridden: the grid sets it")
        if not isinstance(setting, str | int | float | list | None):
            raise ValueError(
                f"{where}: '{name}' cannot be {setting!r:.60}; write one dotted name a line"
            )
    return overrides


def _refuse_cycles(grid: Grid) -> None:
    waiting = {name: _needed(row) for name, row in grid.rows.items()}
    while ready := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in ready:
            del waiting[name]
    if waiting:
        raise ValueError(f"rows: {', '.join(waiting)} wait for each other; none can be the first")


def _refuse_same_folders(grid: Grid) -> None:
    taken = {grid.out / name for name in grid.rows}
    if Path(grid.cache) in {grid.out, *taken}:
        raise ValueError(f"cache: {grid.cache} is the folder of runs, too; choose another")


def _refuse_missing_files(grid: Grid) -> None:
    if not Path(SCORING).is_file():
        raise ValueError(f"there is no {SCORING} in {Path.cwd()}; go to the repository's root")
    for name, row in grid.rows.items():
        for key, file in (("script", row.script), ("config", row.config)):
            if file is not None and not Path(file).is_file():
                raise ValueError(f"rows.{name}.{key}: there is no file {file}{_from_where(file)}")


def _from_where(file: str) -> str:
    return "" if Path(file).is_absolute() else f" in {Path.cwd()}"


def _needed(row: Row) -> set[str]:
    return {name for references in row.inputs.values() for name, _ in references}


def _mapping(value: Any, where: str, valid: Collection[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where}: expected names with values, not {value!r:.60}")
    for key in value:
        if valid is not None:
            _known(key, valid, where)
    return value


def _known(name: Any, valid: Collection[str], where: str) -> str:
    if not isinstance(name, str) or name not in valid:
        near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"{where}: '{name}' is unknown{hint}")
    return name


def _distinct(value: Any, where: str, item: Callable[[Any, str], T]) -> tuple[T, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: expected a list, not {value!r:.60}")
    items = tuple(item(each, where) for each in value)
    if len(set(items)) < len(items):
        raise ValueError(f"{where}: {value} names something twice")
    return items


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text, not {value!r:.60}")
    return value


def _seed(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where}: expected whole numbers from 0 on, not {value!r:.60}")
    return value


def _tiou(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{where}: expected overlaps in (0, 1], not {value!r:.60}")
    return float(value)


def _text_of(value: Any) -> str:
    """A setting's value as the command line takes it: JSON, but texts as they are."""
    return value if isinstance(value, str) else json.dumps(value)
