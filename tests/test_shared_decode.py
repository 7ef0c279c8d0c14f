"""Which settings keep checkpoints from sharing a decode or a run from going on: one comparison."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load
from extract.run import check_shared_decode
from tests.test_e2e import DEMO
from train.config import Experiment
from train.engine.checkpoint import changed_settings


def experiment(*overrides: str) -> Experiment:
    return load(Experiment, DEMO, list(overrides))


CHANGES_NOTHING = {
    "out": "elsewhere",
    "data.frame_cache": "/tmp/frames",
    "data.frame_cache_gb": 3.0,
    "data.bad_videos": "skip",
    "data.class_agnostic": True,
    "training.workers": 7,
    "training.epochs": 300,
    "training.lr": 3e-4,
    "training.seed": 5,
    "training.validate_every": 3,
    "evaluation.batch_size": 5,
    "evaluation.min_score": 0.2,
    "head.width": 64,
    "cache.flush_s": 3.0,
    "cache.blocks": [1],
    "direction": "reversed",
}
CHANGES_NUMBERS = {
    "sampling.window_size": 192,
    "sampling.fps": 11.0,
    "sampling.snippet_stride": 8,
    "sampling.test_overlap": 0.25,
    "pixels.size": 48,
    "pixels.antialias": False,
    "data.videos": "/elsewhere",
    "data.annotations": "/elsewhere.json",
    "data.train_subset": "other",
    "data.blocked": ["x"],
    "cache.url": "/another/store",
    "cache.span": "window",
    "cache.dtype": "float32",
}


def changed(name: str, value: Any) -> Experiment:
    return experiment(f"--{name}={value}")


@pytest.mark.parametrize("name", CHANGES_NOTHING)
def test_what_changes_no_activation_is_no_obstacle(name: str) -> None:
    config = changed(name, CHANGES_NOTHING[name])
    assert config != experiment()
    check_shared_decode([experiment(), config, experiment()])


@pytest.mark.parametrize("name", CHANGES_NUMBERS)
def test_what_changes_activations_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot share a decode \({name} was .*, is "):
        check_shared_decode([experiment(), experiment(), changed(name, CHANGES_NUMBERS[name])])


def test_paths_that_lead_to_the_same_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/videos").mkdir(parents=True)
    (tmp_path / "data/truth.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "data/truth.json")
    spellings = {
        "data.videos": ("data/videos", "data/videos/", "./data/videos", "link/videos"),
        "data.annotations": ("data/truth.json", "link/truth.json", "hard.json"),
        "data.info_csv": (["data/a.csv", "b.csv"], ["link/a.csv", f"{tmp_path}/b.csv"]),
        "cache.url": ("store", "./store/", f"{tmp_path}/store", f"file://{tmp_path}/store"),
        "data.classes": ("gone/x.txt", f"{tmp_path}/gone/../gone/x.txt"),
    }
    for name, values in spellings.items():
        every = [changed(name, value) for value in values]
        check_shared_decode(every)
        if name != "cache.url":
            assert not changed_settings(every[0], every[1])
    other = changed("data.videos", "data/other")
    assert changed_settings(every[0], other)
    with pytest.raises(ValueError, match=r"data\.info_csv"):
        check_shared_decode(
            [changed("data.info_csv", ["a.csv"]), changed("data.info_csv", ["a.csv", "a.csv"])]
        )
    stores = [changed("cache.url", url) for url in ("s3://bucket/a", "s3://bucket/a/")]
    check_shared_decode(stores)
    with pytest.raises(ValueError, match=r"cache\.url"):
        check_shared_decode([stores[0], changed("cache.url", "s3://bucket/b")])


def test_a_run_goes_on_with_its_files_named_otherwise(tmp_path: Path) -> None:
    config = experiment(f"--data.videos={tmp_path}")
    (tmp_path / "in").mkdir()
    same = replace(config, data=replace(config.data, videos=str(tmp_path / "in/..")))
    assert same != config and not changed_settings(config, same)
    assert changed_settings(config, replace(config, direction="reversed"))
