"""The reference of settings: every one is there, with its type, default and meaning."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from configs.loader import field_names
from configs.reference import REQUIRED, Setting, SettingGroup, describe_settings
from tests.conftest import REPOSITORY
from train.ablation.grid import Grid, Row
from train.config import Experiment
from train.recognition.config import Recognition


@dataclass(frozen=True)
class Inner:
    """An inner group.

    Args:
        side: in pixels; `kind` has no colon here. `other`: it does, after `side`: still its own.
        kind, wide: shared,
            over two lines.
    """

    side: int
    other: float | None = None
    kind: Literal["a", "b"] = "a"
    wide: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Wider(Inner):
    """A wider one.

    More text, that is no meaning: of nothing.

    Args:
        wide: in its own words.
        names: of files.

    Raises:
        ValueError: never.
    """

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """All of it."""

    inner: Wider
    silent: dict[str, int]
    flag: bool = True


def test_settings_are_read_from_dataclasses_and_docstrings() -> None:
    shared = "shared, over two lines."
    assert list(describe_settings(Outer)) == [
        SettingGroup(
            "",
            "All of it.",
            (
                Setting("silent", "mapping", REQUIRED, ""),
                Setting("flag", "true or false", True, ""),
            ),
        ),
        SettingGroup(
            "inner",
            "A wider one.",
            (
                Setting(
                    "inner.side", "whole number", REQUIRED, "in pixels; `kind` has no colon here"
                ),
                Setting(
                    "inner.other", "number or null", None, "it does, after `side`: still its own."
                ),
                Setting("inner.kind", "`a` or `b`", "a", shared),
                Setting("inner.wide", "2 × number", (0.0, 1.0), "in its own words."),
                Setting("inner.names", "list of text", (), "of files."),
            ),
        ),
    ]


@pytest.mark.parametrize("kind", [Experiment, Recognition, Grid, Row])
def test_every_setting_has_a_meaning(kind: type) -> None:
    groups = list(describe_settings(kind))
    settings = {setting.name: setting for group in groups for setting in group.settings}
    outer = {group.name for group in groups if group.name}
    assert set(settings) | outer == set(field_names(kind))
    assert not [name for name, setting in settings.items() if not setting.meaning]
    assert all(group.meaning for group in groups)


def test_the_page_of_settings_is_what_the_dataclasses_say(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; page = runpy.run_path('docs/settings.py'); "
        "sys.stdout.reconfigure(encoding='utf-8'); sys.stdout.write(page['render_page']())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True
    )
    page = (REPOSITORY / "docs/settings.md").read_bytes()
    assert page == done.stdout, "run `python docs/settings.py`: docs/settings.md is not up to date"
    text = page.decode()
    for kind in (Experiment, Recognition, Grid, Row):
        for group in describe_settings(kind):
            assert all(f"| `{setting.name}` |" in text for setting in group.settings)
