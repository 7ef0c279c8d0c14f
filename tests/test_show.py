"""What people see of a cache: which activations are true, which are stale, what is damaged."""

import shutil
from pathlib import Path

import av
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from cache.address import FingerprintInfo
from cache.show import show
from cache.store import Store
from extract.activations.fingerprints import legacy_fingerprints, settings
from extract.activations.stored import Cached
from extract.backbone.backbone import Backbone
from tests.forks import good, script
from tests.test_e2e import DEMO, QUICK
from train.cache_entries.adoption import adopt_entry
from train.config import Experiment
from train.data.cached import evaluation_spans
from train.data.truth import load_annotations
from train.data.video_files import with_digest
from train.data.videos import load_items
from train.detector.model import Detector
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
        assert "0 B stay" in done.stdout
    finally:
        shutil.rmtree(study / "run")
        (study / "kept").rename(study / "run")
    done = script("cache/show.py", cache, "--verify")
    assert done.returncode == 0 and "features" not in done.stdout


@pytest.mark.slow
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
    assert done.returncode == 0 and "unknown: " in done.stdout and "freed 0 B" in done.stdout


def test_a_budget_and_what_is_no_cache(study: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    done = script("cache/show.py", cache, "--prune", "--budget", "0")
    assert done.returncode == 0 and "0 B stay" in done.stdout
    done = script("cache/show.py", tmp_path / "nothing")
    assert done.returncode == 1 and "no activation cache" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "nothing").exists()
    assert script("cache/show.py", cache, "--budget", "1").returncode == 2


def states(cache: Path, capsys: pytest.CaptureFixture[str], prunes: bool = False) -> str:
    """Return what `show` prints."""
    capsys.readouterr()
    show(str(cache), False, prunes, None)
    return capsys.readouterr().out


def true_entry(cache: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the beginning of the fingerprint of a true entry, as the table shows it."""
    rows = [line.split() for line in states(cache, capsys).splitlines() if " true: " in line]
    return rows[0][1]


def test_entries_of_other_libraries_say_so_and_stay(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache, version = shutil.copytree(study / "cache", tmp_path / "cache"), av.__version__
    name = true_entry(cache, capsys)
    before = Store.open(cache).bytes
    monkeypatch.setattr(av, "__version__", "0.0.1")
    shown = states(cache, capsys, prunes=True)
    why = f"libraries.av was {version.split('+')[0]}, is 0.0.1"
    assert " outdated: " in shown and f"{name}: {why}" in shown and "--adopt" in shown
    # What has other weights may be freed, what is outdated may be true elsewhere.
    assert Store.open(cache).bytes > 0 and ("stale" in shown or Store.open(cache).bytes == before)
    (study / "run").rename(study / "elsewhere")
    try:
        shown = states(cache, capsys)
    finally:
        (study / "elsewhere").rename(study / "run")
    assert f": {why}" in shown and " outdated: " in shown and "true: " not in shown


@pytest.mark.slow
def test_an_outdated_entry_with_equal_numbers_can_be_adopted(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accelerator: Accelerator,
) -> None:
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    name = true_entry(cache, capsys)
    monkeypatch.setattr(av, "__version__", "0.0.1")
    assert f" {name} " in states(cache, capsys) and "true: " not in states(cache, capsys)
    said = adopt_entry(str(cache), name, None, None, [])
    assert "is read again" in said and "tolerance 0.001" in said
    assert true_entry(cache, capsys) == name
    states(cache, capsys, prunes=True)
    assert true_entry(cache, capsys) == name  # prune keeps it, and that it was adopted
    assert "true already" in adopt_entry(str(cache), name, None, None, [])

    monkeypatch.undo()
    assert true_entry(cache, capsys) == name  # it is what it was, too
    with pytest.raises(ValueError, match=r"0 fingerprints in .* begin with 'beef'"):
        adopt_entry(str(cache), "beef", None, None, [])


@pytest.mark.slow
def test_other_numbers_and_other_weights_are_not_adopted(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accelerator: Accelerator,
) -> None:
    cache = shutil.copytree(study / "cache", tmp_path / "cache")
    name = true_entry(cache, capsys)

    def strongest(self: Backbone, tokens: Tensor) -> Tensor:
        return tokens.amax(2).transpose(1, 2)

    monkeypatch.setattr(Backbone, "pool", strongest)
    assert "extract.backbone.backbone computes otherwise" in states(cache, capsys)
    with pytest.raises(ValueError, match=r"0 of \d spans are equal .*tolerance 0\.001"):
        adopt_entry(str(cache), name, None, None, [])
    assert "true: " not in states(cache, capsys)

    last = load_checkpoint(study / "run/last.pt", Experiment)
    changed = {key: tensor + 1 for key, tensor in last.ema.items()}
    save_checkpoint(tmp_path / "other.pt", last._replace(ema=changed))
    with pytest.raises(ValueError, match="does not have these weights"):
        adopt_entry(str(cache), name, str(tmp_path / "other.pt"), None, [])


@pytest.mark.slow
def test_entries_from_before_code_counted_can_be_adopted(study: Path, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", study / "run/last.pt"
    saved = load_checkpoint(path, Experiment)
    config, backbone = saved.config, Detector.restore(saved, path).streams[0].backbone
    new = settings(config.backbone, config.pixels, "fp32")
    del new["pixels"]["antialias"]
    scale = {"mean": list(config.backbone.mean), "std": list(config.backbone.std)}
    old = {"arithmetic": 1, **new, **scale}
    name = legacy_fingerprints(backbone, old)[-1]
    good("extract/run.py", "--checkpoint", path, "--cache", tmp_path / "new", "--of", "validation")
    items = load_items(
        config.data, load_annotations(config.data), str(config.data.validation_subset)
    )
    overlap = config.sampling.validation_overlap
    with Store.open(tmp_path / "new") as source, Store.open(cache, "a") as store:
        (fresh,) = source.fingerprints
        writer = store.writer()
        writer.describe(FingerprintInfo(name, "features", str(path.resolve()), old))
        spans = evaluation_spans(
            [with_digest(item) for item in items], overlap, config.sampling, config.direction
        )
        for span in spans:
            rows = Cached(source, "features", fresh, "float16").read(span)
            writer.write(Cached(store, "features", name, "float16").address(span), rows)
        writer.close()
    plan = [
        "extract/run.py",
        "--checkpoint",
        path,
        "--cache",
        cache,
        "--plan",
        "--of",
        "validation",
    ]
    assert f"cache: 0 of {len(spans)} spans are there" in good(*plan)
    shown = good("cache/show.py", cache)
    assert f"why {name[:12]}: it was stored before the code was part" in shown
    said = good("cache/show.py", cache, "--adopt", name[:12])
    assert "are equal bit for bit" in said
    assert "true: " in good("cache/show.py", cache)
    assert f"cache: {len(spans)} of {len(spans)} spans are there" in good(*plan)
