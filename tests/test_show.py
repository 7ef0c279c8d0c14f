"""What people see of a cache: which activations are true, which are stale, what is damaged."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.forks import script
from tests.test_e2e import DEMO, QUICK
from train.config import Experiment
from train.engine.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def study(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that left the features of both its validations, and those of its last weights."""
    folder = tmp_path_factory.mktemp("show")
    run = ["train/e2e.py", "--config", DEMO, *data, *QUICK, "--out", folder / "run"]
    done = script(*run, "--cache", folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_table_tells_what_is_stale_and_prune_frees_it(study: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    done = script("cache/show.py", cache, "--verify")
    assert done.returncode == 0 and "all is well" in done.stdout, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("features")]
    states = sorted(row.split()[-2] for row in rows)
    best, last = (load_checkpoint(study / f"run/{n}.pt", Experiment) for n in ("best", "last"))
    same = all(torch.equal(best.ema[key], last.ema[key]) for key in best.ema)
    assert states == (["stale:", "true:"] if same else ["true:", "true:"])
    assert all("run/last.pt" in row and " forward " in row and " window " in row for row in rows)
    assert "2 videos" in done.stdout

    # Other weights under the same name: all of it is stale.
    changed = {name: tensor + 1 for name, tensor in last.ema.items()}
    (study / "run").rename(study / "kept")
    try:
        (study / "run").mkdir()
        save_checkpoint(study / "run/last.pt", last._replace(ema=changed))
        done = script("cache/show.py", cache, "--prune")
        assert done.returncode == 0 and done.stdout.count("stale:") == 2, done.stdout + done.stderr
        assert "0.0 MB stay" in done.stdout
    finally:
        shutil.rmtree(study / "run")
        (study / "kept").rename(study / "run")
    done = script("cache/show.py", cache, "--verify")
    assert done.returncode == 0 and "features" not in done.stdout


def test_damage_is_named_and_pruned(study: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    shards = [file for file in cache.rglob("c/**/*") if file.is_file()]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 64
        shard.write_bytes(content)
    done = script("cache/show.py", cache, "--verify")
    assert done.returncode == 1
    for shard in shards:
        assert f"damaged: {shard.relative_to(cache)}: " in done.stdout, done.stdout + done.stderr
    done = script("cache/show.py", cache, "--verify", "--prune")
    assert done.returncode == 0 and " damaged, 0 twice" in done.stdout, done.stdout
    done = script("cache/show.py", cache, "--verify")
    assert done.returncode == 0 and "all is well" in done.stdout
    plan = ["extract/run.py", "--checkpoint", study / "run/last.pt", "--cache", cache, "--plan"]
    done = script(*plan, "--of", "validation")
    assert "full and 0 partial passes" in done.stdout, done.stdout + done.stderr


def test_what_cannot_be_asked_is_kept(study: Path, tmp_path: Path) -> None:
    """A checkpoint that is gone may be only elsewhere: what was computed from it stays true."""
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    (study / "run").rename(study / "elsewhere")
    try:
        done = script("cache/show.py", cache, "--prune")
    finally:
        (study / "elsewhere").rename(study / "run")
    assert done.returncode == 0 and "unknown: " in done.stdout and "freed 0.0 MB" in done.stdout


def test_a_budget_and_what_is_no_cache(study: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    done = script("cache/show.py", cache, "--prune", "--budget", "0")
    assert done.returncode == 0 and "0.0 MB stay" in done.stdout
    done = script("cache/show.py", tmp_path / "nothing")
    assert done.returncode == 1 and "no activation cache" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "nothing").exists()
    assert script("cache/show.py", cache, "--budget", "1").returncode == 2
