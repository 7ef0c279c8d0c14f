"""Write docs/settings.md: every setting with its type, default and meaning, and who sets it.

    python docs/settings.py

`make docs` does it. Types and defaults come from the dataclasses, meanings from their docstrings.
"""

import fnmatch
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs.loader import base_of  # noqa: E402
from configs.reference import REQUIRED, SettingGroup, describe_settings  # noqa: E402
from extract.settings import sampling  # noqa: E402
from train.ablation.grid import Grid, Row  # noqa: E402
from train.config import Experiment  # noqa: E402
from train.recognition.config import Recognition  # noqa: E402

PAGE = ROOT / "docs/settings.md"
INTRODUCTION = """# Settings

<!-- Written by docs/settings.py (`make docs`); do not edit. -->

An experiment is a YAML file in `configs/`, laid over the defaults below. Every setting can also be
given on the command line by its dotted name, `--training.lr 5e-4` or `--training.lr=5e-4`. A
script's `--help` lists those that it uses, `--help training` one group. An unknown name is refused,
and the nearest one is proposed. A run writes all its settings into `config.yaml`.

*Set by* says which files in `configs/` set what, as patterns where these fit no other file of the
folder. `configs/e2e/` is left out of their names; names of a dataset's own files are not listed.

"""


def render_page() -> str:
    """Return the page as Markdown."""
    detectors = _find_values("e2e", "features", "fusion")
    recognisers = _find_values("recognition")
    parts = [INTRODUCTION, "## Detectors\n\n"]
    parts += [
        "`train/e2e.py`, `train/heads.py`, `extract/run.py`, `evaluate/run.py` and others.\n\n"
    ]
    parts += [_render_group(group, detectors) for group in describe_settings(Experiment)]
    parts += [f"{_describe_pairing()}\n\n", "## Recognisers\n\n`train/recognise.py`.\n\n"]
    parts += [_render_group(group, recognisers) for group in describe_settings(Recognition)]
    parts += ["## Grids of runs\n\n`train/ablate.py`; its file is described in [Both directions]"]
    parts += ["(directions.md#a-grid-of-your-own).\n\n"]
    for kind in (Grid, Row):
        parts += [_render_group(group, {}) for group in describe_settings(kind)]
    return "".join(parts).rstrip() + "\n"


def _render_group(group: SettingGroup, values: Mapping[str, Mapping[str, list[str]]]) -> str:
    heading = f"### `{group.name}`\n\n" if group.name else ""
    lines = ["| setting | type | default | meaning | set by |", "|---|---|---|---|---|"]
    for name, kind, default, meaning in group.settings:
        shown = "must be given" if default is REQUIRED else f"`{_format_value(default)}`"
        found = values.get(name, {})
        users = "; ".join(f"`{value}`: {', '.join(files)}" for value, files in found.items())
        users = users.replace("*", r"\*")
        lines.append(f"| `{name}` | {kind} | {shown} | {meaning.rstrip('.')} | {users} |")
    return f"{heading}{group.meaning}\n\n" + "\n".join(lines) + "\n\n"


def _describe_pairing() -> str:
    """Return what the values of fusion.pairing mean, which its type's docstring says."""
    source = inspect.getsource(sampling)
    text = source.split("Pairing = ", 1)[1].split('"""')[1]
    return "`fusion.pairing`: " + " ".join(text.split())


def _format_value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_format_value(each) for each in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _find_values(*folders: str) -> dict[str, dict[str, list[str]]]:
    """Return by setting and value which config files have it, folders in short."""
    files = [file for each in folders for file in sorted((ROOT / "configs" / each).rglob("*.yaml"))]
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        base = base_of(file)
        under = {} if base is None else dict(_flatten(yaml.safe_load(base.read_text())))
        for name, value in (under | dict(_flatten(yaml.safe_load(file.read_text())))).items():
            if "/" not in str(value) and name not in ("base", "out"):
                found[name][_format_value(value)].append(file)
    return {
        name: {value: _shorten(users, files) for value, users in values.items()}
        for name, values in found.items()
    }


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shorten(users: list[Path], files: list[Path]) -> list[str]:
    """Return patterns that fit these files and no others, the ones that fit most first."""
    found: list[str] = []
    for folder in dict.fromkeys(file.parent for file in users):
        beside = {file.stem for file in files if file.parent == folder}
        remaining = {file.stem for file in users if file.parent == folder}
        fitting = {}
        for pattern in _patterns(remaining):
            stems = frozenset(fnmatch.filter(beside, pattern))
            if stems <= remaining:
                fitting[pattern] = stems
        short = folder.relative_to(ROOT / "configs").as_posix().removeprefix("e2e/")
        if folder == ROOT / "configs/e2e":  # `e2e/*` would look as if it held for all folders in it
            fitting.pop("*", None)
        while remaining:
            best = max(fitting, key=lambda pattern: len(fitting[pattern] & remaining))
            found.append(f"{short}/{best}")
            remaining -= fitting[best]
    return found


def _patterns(stems: set[str]) -> list[str]:
    """Return patterns of the parts of names: all, the beginning, the end, one between, none."""
    parts = [stem.split("_") for stem in sorted(stems)]
    starts = ["_".join(each[:count]) + "_*" for each in parts for count in range(1, len(each))]
    ends = ["*_" + each[-1] for each in parts]
    inner = [f"*_{part}_*" for each in parts for part in each[1:-1]]
    return ["*", *starts, *ends, *inner, *sorted(stems)]


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
