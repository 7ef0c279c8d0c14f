"""Every shipped config has the values that were published for it, or says why not."""

import csv
import json
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from configs.loader import flatten, load
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.recognition.config import Recognition

CONFIGS = REPOSITORY / "configs"
# What a row says: published by `source`; `ours` only where it differs, for a `reason`. Of several
# rows that fit a config the last one holds.
with (REPOSITORY / "tests/published.csv").open(newline="") as file:
    ROWS = list(csv.DictReader(file))
OWN = ("e2e/demo/*", "recognition/demo", "e2e/own")  # nobody else's recipe
FILES = {
    str(path.relative_to(CONFIGS).with_suffix("")): path
    for room in ("e2e", "features", "recognition")
    for path in sorted((CONFIGS / room).rglob("*.yaml"))
}
PUBLISHED = [name for name in FILES if not any(fnmatch(name, own) for own in OWN)]


def rows_of(name: str) -> dict[str, dict[str, str]]:
    return {row["setting"]: row for row in ROWS if fnmatch(name, row["configs"])}


def settings_of(path: Path) -> dict[str, Any]:
    kind: type[Any] = Recognition if path.parent.name == "recognition" else Experiment
    settings: dict[str, Any] = json.loads(json.dumps(flatten(load(kind, path))))
    settings["training.stop_epoch"] = settings["training.stop_epoch"] or settings["training.epochs"]
    return settings


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_has_the_published_values(name: str) -> None:
    rows, settings = rows_of(name), settings_of(FILES[name])
    assert rows.keys() <= settings.keys()
    wrong = {
        setting: (settings[setting], row["published"])
        for setting, row in rows.items()
        if settings[setting] != json.loads(row["ours"] or row["published"])
    }
    assert not wrong, "(ours, published)"


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_decides_results_is_in_the_table(name: str) -> None:
    recognition = name.startswith("recognition/")
    imported = name.startswith("features/")
    heads_only = imported or ("/tada2d" in name and not recognition)
    needed = ["global_batch", "lr", "backbone_lr", "epochs", "stop_epoch", "warmup_epochs"]
    if not recognition:
        needed += ["weight_decay", "label_smoothing", "boundary_weight", "positives", "ema_decay"]
    if heads_only:
        needed.remove("backbone_lr")
    decides = {f"training.{setting}" for setting in needed}
    if not recognition:
        decides |= {"evaluation.nms.sigma", "evaluation.nms.voting_threshold", "evaluation.tious"}
        decides |= {"sampling.method", "training.overlapping_ranges", "head.levels"}
        decides |= {"head.attention_window", "head.input_dropout", "evaluation.max_per_window"}
        decides |= {"evaluation.nms.min_score", "evaluation.nms.max_segments"}
    if not imported:
        decides.add("crops.antialias" if recognition else "pixels.antialias")
    if not heads_only and not recognition:
        decides |= {"sampling.window_size", "pixels.size", "pixels.rand_augment", "pixels.flip"}
        decides |= {"backbone.trunk.width", "backbone.trunk.depth"}
    assert decides <= rows_of(name).keys()


@pytest.mark.parametrize("name", [name for name in FILES if "_frozen_" in name])
def test_a_frozen_backbone_sees_no_random_augmentation(name: str) -> None:
    settings = settings_of(FILES[name])
    assert settings["backbone.mode"] == "frozen"
    assert settings["pixels.random_crop"] is settings["pixels.colour_jitter"] is None
    assert settings["pixels.flip"] == settings["pixels.rand_augment"] == 0


def test_differences_are_deliberate() -> None:
    for row in ROWS:
        assert row["source"], row
        assert bool(row["ours"]) == bool(row["reason"]), row
        assert row["ours"] != row["published"], row
        assert any(fnmatch(name, row["configs"]) for name in PUBLISHED), row
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for row in ROWS:
        seen[row["configs"], row["setting"]] += 1
    assert max(seen.values()) == 1
