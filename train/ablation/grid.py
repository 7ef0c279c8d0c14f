"""A grid of runs: rows of a table, each trained with several seeds; read from YAML and ordered."""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from configs.loader import find_config, find_script, load
from configs.messages import format_count
from evaluate.datasets.fields import did_you_mean

Scalar = str | int | float | bool | None
Setting = Scalar | list[Scalar | list[Scalar]] | dict[str, Any]

SCORING = "evaluate/run.py"
AVERAGE = "average"
SET_BY_GRID = ("out", "training.seed", "cache.url")


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
        checkpoint, forward_from, reversed_from, teacher: rows whose last.pt it builds on or learns
            from, of the same seed, or with `+n` after the name of the seed n places further
            (cyclic).
        overrides: values of settings by their dotted names; they win over those of all rows.
        resources: what a job of it needs (`train/ablate.py --on`), by submitit's names, such as
            `timeout_min`, `gpus_per_node`, `slurm_partition`; they win over `--resources`.
    """

    script: str
    config: str | None = None
    checkpoint: str | tuple[str, ...] = ()
    forward_from: str | None = None
    reversed_from: str | None = None
    teacher: str | None = None
    overrides: dict[str, Setting] = field(default_factory=dict)
    resources: dict[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.config is None and not self.checkpoint:
            raise ValueError("give 'config', 'checkpoint' or both")
        _check_overrides(self.overrides)
        _ = self.inputs  # raises ValueError if one of them is not a reference

    @property
    def inputs(self) -> dict[str, list[tuple[str, int]]]:
        """The rows it builds on and how many seeds further, by the option that is given them."""
        checkpoint = (self.checkpoint,) if isinstance(self.checkpoint, str) else self.checkpoint
        options = {"--checkpoint": checkpoint}
        options |= {"--forward-from": (self.forward_from,)} if self.forward_from else {}
        options |= {"--reversed-from": (self.reversed_from,)} if self.reversed_from else {}
        options |= {"--training.teacher": (self.teacher,)} if self.teacher else {}
        return {
            option: [_parse_reference(text, option) for text in texts]
            for option, texts in options.items()
            if texts
        }


@dataclass(frozen=True)
class Grid:
    """All rows of a table and how they are scored.

    Args:
        out: a folder per run stands in it, `<row>/<seed>`; `cache`: the store they share, default
            `<out>/cache`.
        rows: what is trained, by names that are folders, too.
        seeds: with each of which every row is trained.
        subset: is scored; `selection`: is scored, too, and decides which fusion is best; default:
            `subset`.
        tious: overlaps to print; `average`: those of them that are averaged, default: all.
        overrides: values of settings for all rows, by their dotted names.
        singles: rows that are single streams; `controls`: rows that must not be better for their
            fusion; all others are fusions.
    """

    out: str
    rows: dict[str, Row]
    cache: str = ""
    seeds: tuple[int, ...] = (0,)
    subset: str = "validation"
    selection: str = ""
    tious: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    average: tuple[float, ...] = ()
    overrides: dict[str, Setting] = field(default_factory=dict)
    singles: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        derived = {"cache": f"{self.out}/cache", "selection": self.subset, "average": self.tious}
        for name, default in derived.items():
            object.__setattr__(self, name, getattr(self, name) or default)  # it is frozen
        for name in ("out", "cache", "subset", "selection"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}: expected a text, not {getattr(self, name)!r}")
        for name in ("seeds", "tious", "average", "singles", "controls"):
            values = getattr(self, name)
            if not values and name not in ("singles", "controls"):
                raise ValueError(f"{name}: expected at least one")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {list(values)} names something twice")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds: expected whole numbers from 0 on, not {min(self.seeds)}")
        if not all(0 < tiou <= 1 for tiou in self.tious):
            raise ValueError(f"tious: expected overlaps in (0, 1], not {list(self.tious)}")
        if not set(self.average) <= set(self.tious):
            raise ValueError("average: only overlaps that are among 'tious' can be averaged")
        _check_overrides(self.overrides)
        for row in self.rows:
            if not isinstance(row, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", row):
                raise ValueError(f"rows: '{row}' names a folder; use letters, digits, '_' and '-'")
        self._check_names()
        self.runs()
        if Path(self.cache) in {self.root, *(self.root / row for row in self.rows)}:
            raise ValueError(f"cache: {self.cache} is the folder of runs, too; choose another")

    def _check_names(self) -> None:
        """Raise ValueError if a name of a row is unknown or stands where it cannot."""
        for where in ("singles", "controls"):
            for name in getattr(self, where):
                _check_known(name, self.rows, where)
        if both := set(self.singles) & set(self.controls):
            raise ValueError(f"'{min(both)}' is among singles and controls; it can be one of them")
        for row, settings in self.rows.items():
            for option, references in settings.inputs.items():
                where = f"rows.{row}.{_key_of(option)}"
                for name, shift in references:
                    _check_known(name, self.rows, where)
                    if shift and shift % len(self.seeds) == 0:
                        raise ValueError(
                            f"{where}: '{name}+{shift}' is '{name}' of the same seed, as the "
                            f"grid has {format_count(len(self.seeds), 'seed')}; give more of them "
                            "or another number"
                        )

    @property
    def root(self) -> Path:
        """The folder of the table and of all runs."""
        return Path(self.out)

    @property
    def subsets(self) -> tuple[str, ...]:
        """What is scored, each once."""
        return tuple(dict.fromkeys((self.subset, self.selection)))

    @property
    def overlaps(self) -> list[str]:
        """The texts of `tious`, as they name scores and columns."""
        return [f"{tiou:g}" for tiou in self.tious]

    @property
    def measures(self) -> dict[str, tuple[float, ...]]:
        """The overlaps that each number of the table is a mean over, by its name."""
        each = zip(self.overlaps, self.tious, strict=True)
        return {AVERAGE: self.average} | {text: (tiou,) for text, tiou in each}

    @property
    def fusions(self) -> list[str]:
        """The rows that are neither single streams nor controls."""
        return [name for name in self.rows if self.kind(name) == "fusion"]

    def kind(self, row: str) -> str:
        """Return what a row is: single, control or fusion."""
        if row in self.singles:
            return "single"
        return "control" if row in self.controls else "fusion"

    def runs(self) -> list[Run]:
        """Return all runs, those that others build on first, otherwise as in the file."""
        needed = {
            name: {each for references in row.inputs.values() for each, _ in references}
            for name, row in self.rows.items()
        }
        ordered: list[str] = []
        while waiting := [name for name in self.rows if name not in ordered]:
            first = next((name for name in waiting if needed[name] <= set(ordered)), None)
            if first is None:
                names = ", ".join(waiting)
                raise ValueError(f"rows: {names} wait for each other; none can be the first")
            ordered.append(first)
        return [Run(name, seed) for name in ordered for seed in self.seeds]

    def folder(self, run: Run) -> Path:
        """Return the folder of a run's results."""
        return self.root / run.row / str(run.seed)

    def settings(self, run: Run) -> dict[str, Setting]:
        """Return the overrides of a run, those for all rows included."""
        return self.overrides | self.rows[run.row].overrides

    def inputs(self, run: Run) -> dict[str, list[Run]]:
        """Return the runs that a run builds on, by the option that names their checkpoints."""
        place = self.seeds.index(run.seed)
        return {
            option: [
                Run(name, self.seeds[(place + shift) % len(self.seeds)])
                for name, shift in references
            ]
            for option, references in self.rows[run.row].inputs.items()
        }

    def needs(self, run: Run) -> list[Run]:
        """Return the runs that a run builds on."""
        return [each for runs in self.inputs(run).values() for each in runs]

    def training(self, run: Run) -> list[str]:
        """Return the command that trains a run, without the interpreter."""
        row = self.rows[run.row]
        words = [*find_script(row.script), *(["--config", row.config] if row.config else [])]
        words += ["--resume", "--out", str(self.folder(run)), "--training.seed", str(run.seed)]
        words += ["--cache", self.cache]
        for option, inputs in self.inputs(run).items():
            words += [option, *(str(self.folder(each) / "last.pt") for each in inputs)]
        return words + override_words(self.settings(run))

    def scoring(self, run: Run, subset: str) -> list[str]:
        """Return the command that scores a trained run, without the interpreter."""
        folder = self.folder(run)
        words = [*find_script(SCORING), "--checkpoint", str(folder / "last.pt")]
        words += ["--cache", self.cache, "--subset", subset]
        words += ["--tious", *self.overlaps, "--out", str(folder / subset)]
        return words


def read_grid(path: Path) -> Grid:
    """Read a grid file; train/ablate.py begins with an example.

    Raises:
        ValueError: it is missing or malformed (see `configs.loader.load`), a row is unknown, rows
            wait for each other, a file that it names is not there.
    """
    grid = load(Grid, path)
    for name, row in grid.rows.items():
        finders: dict[str, Callable[[str], object]] = {"script": find_script, "config": find_config}
        for key, find in finders.items():
            file = getattr(row, key)
            try:
                if file is not None:
                    find(file)
            except ValueError as error:
                where = "" if Path(file).is_absolute() else f" in {Path.cwd()}"
                missing = f"{path}: rows.{name}.{key}: there is no file {file}{where}"
                raise ValueError(missing) from error
    return grid


def override_words(settings: dict[str, Setting]) -> list[str]:
    """Return settings as words of a command line, one each: a value may begin with a minus."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]


def _parse_reference(text: str, option: str) -> tuple[str, int]:
    name, plus, shift = text.partition("+")
    if plus and not shift.isdecimal():
        raise ValueError(f"{_key_of(option)}: '{text}': after the + stands how many seeds further")
    return name, int(shift or 0)


def _key_of(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _check_overrides(overrides: dict[str, Setting]) -> None:
    for name, value in overrides.items():
        if name in SET_BY_GRID:
            raise ValueError(f"overrides: '{name}' cannot be overridden: the grid sets it")
        if isinstance(value, dict):
            raise ValueError(
                f"overrides: '{name}' cannot be {value!r:.60}; write one dotted name a line"
            )


def _check_known(name: str, rows: Collection[str], where: str) -> None:
    if name not in rows and ("/" in name or name.endswith(".pt")):
        raise ValueError(
            f"{where}: '{name}' is a file; a row of the grid must stand here, one of "
            f"{', '.join(rows)}"
        )
    if name not in rows:
        raise ValueError(f"{where}: '{name}' is unknown{did_you_mean(name, rows)}")
