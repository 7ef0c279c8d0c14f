"""Heads on cached activations learn and find what end-to-end runs do; scripts as users run them."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from fsspec.core import url_to_fs
from torch import Tensor

import train.data.windows
from cache.address import VideoInfo
from cache.store import Store
from cache.upkeep.retention import Retention
from configs import cli
from configs.loader import load
from evaluate.reports.metrics_file import read_metrics
from extract.sampling.spans import Span, random_window_of_span, whole_video_window
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import arrange, window_frames
from extract.sampling.windows import Window
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import Direction, SamplingConfig
from extract.video.reader import VideoReader
from tests.conftest import REPOSITORY
from tests.forks import script
from tests.marks import slow
from tests.test_e2e import DEMO, ENVIRONMENT, QUICK, TWO_PROCESSES
from tests.test_e2e import script as launched
from train.config import Experiment
from train.data.cached import (
    CachedStreams,
    ensure_cached,
    evaluation_spans,
    training_spans,
    training_windows,
)
from train.data.items import Subset, VideoItem
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.detector.detection import detect_subset, window_loader
from train.detector.model import Detector
from train.detector.setup import activations_of, freeze_by_default
from train.detector.training import DetectionTask
from train.engine.checkpoint import load_checkpoint, save_checkpoint
from train.engine.loop import TrainingRun


@pytest.mark.parametrize("direction", ["forward", "reversed"])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("grain", [2, slow(16)])
@pytest.mark.parametrize("frames", [1000, 263, slow(131), slow(60), 9])
def test_random_stretches_are_rows_of_their_span(
    direction: Direction, scale: int, grain: int, frames: int
) -> None:
    sampling = SamplingConfig(window_size=64 // scale, scale_factor=scale, snippet_stride=2 * scale)
    info = VideoInfo("0" * 64, "clip", 1, frames, 25.0)
    window = whole_video_window(frames, sampling)
    span = Span(info, Path("clip.mp4"), window, direction, "video")
    rng, begins, ends = np.random.default_rng(0), set(), set()
    everywhere = np.stack([np.arange(frames), np.arange(frames) + 1.0], 1)
    for _ in range(2000):
        drawn, (rows,) = random_window_of_span(rng, span, everywhere, sampling, grain, [direction])
        seen = span.frames[2 * rows.start : 2 * rows.stop]
        ordered = drawn.frames if direction == "forward" else drawn.frames[::-1]
        assert np.array_equal(seen[: len(ordered)], ordered)
        assert len(seen) - len(ordered) < grain and len(seen) <= drawn.samples == 64
        assert rows.start % (grain // 2) == 0 and 0 <= rows.start < rows.stop <= span.rows
        if direction == "reversed":
            assert drawn.reflection == (len(ordered) - 1) / scale and len(seen) == len(ordered)
        begins.add(int(drawn.frames[0]))
        ends.add(int(drawn.frames[-1]))
    last = 2 * ((frames - 1) // 2)
    assert min(begins) == 0 and (max(ends) == last or frames <= 128)


def experiment(data: list[str], out: Path, *overrides: str) -> Experiment:
    fixed = ["--training.global_batch=1", "--evaluation.batch_size=1", "--cache.dtype=float32"]
    return load(Experiment, DEMO, [*data, *QUICK, *fixed, f"--out={out}", *overrides])


def shaken(config: Experiment) -> Detector:
    """Return a detector whose adapters do something."""
    torch.manual_seed(1)
    detector = Detector(config, tuple("abcdef"))
    detector.load_pretrained()
    for stream in detector.streams:
        for name, weight in stream.backbone.named_parameters():
            if name.startswith("adapters.") and name.endswith("up.weight"):
                torch.nn.init.normal_(weight, std=0.1)
    return detector.eval()


def loaded(config: Experiment, subset: str, store: Store) -> Subset[VideoItem]:
    return load_items(
        *(config.data, load_annotations(config.data), subset, None, store),
        sampling_fps=config.sampling.fps,
    )


@pytest.mark.parametrize("directions", [slow("forward"), slow("reversed"), "both", slow("by time")])
def test_detections_from_the_cache_are_those_from_pixels_bit_for_bit(
    data: list[str], tmp_path: Path, accelerator: Accelerator, directions: str
) -> None:
    chosen = {"both": "--fusion.method=average", "by time": "--sampling.fps=8.5"}
    config = experiment(data, tmp_path, chosen.get(directions, f"--direction={directions}"))
    detector = shaken(config)
    with Store.open(tmp_path / "cache", "a") as store:
        items = loaded(config, "test", store)
        overlap = config.sampling.test_overlap
        pixels = window_loader(items, overlap, config, accelerator)
        expected, _ = detect_subset(detector, items, pixels, accelerator, "pixels")
        activations = activations_of(detector, store, ["weights.pt"])
        spans = [evaluation_spans(items, overlap, config.sampling, d) for d in config.directions]
        for _ in range(2):
            cached, _ = ensure_cached(activations, spans, "features", [items], accelerator, 0)
            windows = window_loader(items, overlap, config, accelerator, cached)
            found, _ = detect_subset(detector, items, windows, accelerator, "cached")
            assert found == expected
        assert any(expected[detector.main_output].values())
        for of, some in zip(activations, spans, strict=True):
            assert of.counts.full == len(some) and not of.counts.partial


def from_pixels(
    pixels: PixelConfig,
    rng: np.random.Generator,
    item: VideoItem,
    sampling: SamplingConfig,
    directions: Sequence[Direction],
    cached: Any,
) -> tuple[Window, tuple[Tensor, ...]]:
    """Replaces `sample_inputs`: the same window, decoded."""
    windows = training_windows(item, sampling)
    window = windows[int(rng.integers(len(windows)))]
    transform = evaluation_transform(pixels)
    (frames,) = window_frames(VideoReader(item.path), [window], transform)
    return window, tuple(arrange(frames, window, d) for d in directions)


@pytest.mark.slow
@pytest.mark.parametrize("block", [6, pytest.param(3, marks=pytest.mark.slow)])
def test_losses_on_the_cache_are_those_of_an_end_to_end_run(
    data: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
) -> None:
    curves, weights = [], []
    for name in ("cached", "pixels"):
        config = experiment(data, tmp_path / name, "--cache.span=window")
        trainable = replace(config.backbone, trainable_from_block=block)
        config = replace(config, backbone=trainable)
        detector = shaken(config)
        with Store.open(tmp_path / "cache", "a") as store:
            items = loaded(config, "training", store)
            nowhere: Any = SimpleNamespace(cut=None)
            cached = CachedStreams((nowhere,))
            if name == "cached":
                cut = config.backbone.last_frozen_cut
                assert cut == ("features" if block == 6 else 2)
                activations = activations_of(detector, store, ["weights.pt"])
                spans = [
                    training_spans(items, config.sampling, d, "window") for d in config.directions
                ]
                cached, _ = ensure_cached(activations, spans, cut, [items], accelerator, 0)
            else:
                monkeypatch.setattr(
                    train.data.windows, "sample_inputs", partial(from_pixels, config.pixels)
                )
            (tmp_path / name).mkdir()
            task = DetectionTask(detector, items, None, accelerator, cached)
            run = TrainingRun(task, accelerator, resume=False)
            run.train()
        curves.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")])
        weights.append(load_checkpoint(tmp_path / name / "last.pt", Experiment).model)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
    assert len(curves[0]) > 3 and curves[0] == curves[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    learned = {
        k for k, v in weights[0].items() if not torch.equal(v, shaken(config).state_dict()[k])
    }
    blocks = {int(key.split(".")[4]) for key in learned if ".backbone." in key}
    assert blocks == set(range(block, 6))


def test_only_the_head_learns_unless_told_otherwise(data: list[str], tmp_path: Path) -> None:
    backbone = experiment(data, tmp_path).backbone
    assert freeze_by_default(backbone).last_frozen_cut == "features"
    part = replace(backbone, trainable_from_block=2)
    assert freeze_by_default(part) == part
    frozen = replace(backbone, mode="frozen")
    assert freeze_by_default(frozen).last_frozen_cut == "features"


def good(*arguments: object, launcher: tuple[str, ...] = ()) -> str:
    done = launched(*arguments, launcher=launcher) if launcher else script(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def study(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector that was trained end to end and the cache that it left."""
    folder = tmp_path_factory.mktemp("study")
    common = ["--config", DEMO, *data, *QUICK, "--cache.dtype=float32"]
    good("train/e2e.py", *common, "--cache", folder / "cache", "--out", folder / "e2e")
    return folder


@pytest.mark.slow
def test_validation_leaves_features_that_heads_find(study: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(study / "cache", cache)
    arguments = ["--checkpoint", study / "e2e/last.pt", "--cache", cache]
    told = good("extract/run.py", *arguments[:2], "--cache", tmp_path / "none", "--plan")
    assert "cache: 0 of 7 spans are there; 7 full" in told and not (tmp_path / "none").exists()
    told = good("extract/run.py", *arguments, "--of", "validation", "--plan")
    there, total = told.split("cache: ")[1].split(" spans")[0].split(" of ")
    assert there == total != "0"
    told = good("extract/run.py", *arguments, "--plan")
    assert f"cache: {there} of {int(total) + 4} spans" in told and "clips to encode" in told
    told = good("train/heads.py", *arguments, "--out", tmp_path / "head", "--head.width=64")
    assert f"cache: {there} of {int(total) + 4} spans are there; 4 full" in told
    told = good("train/heads.py", *arguments, "--out", tmp_path / "again")
    assert f"cache: {int(total) + 4} of {int(total) + 4} spans are there\n" in told
    assert (tmp_path / "head/curves.png").exists()

    # What comes out is a whole detector: it is evaluated, and fine-tuned end to end.
    head = tmp_path / "head/best.pt"
    good("evaluate/run.py", "--checkpoint", head, "--out", tmp_path / "pixels")
    for _ in range(2):
        arguments = ["--checkpoint", head, "--cache", cache, "--evaluation.batch_size=8"]
        told = good("evaluate/run.py", *arguments, "--out", tmp_path / "cached")
    assert "spans are there\n" in told
    one, two = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("pixels", "cached")
    )
    assert one == two
    config = tmp_path / "head/config.yaml"
    tuned = ["--backbone.trainable_from_block=0", "--training.stop_epoch=1", "--cache.url=null"]
    good("train/e2e.py", "--config", config, "--init-from", head, *tuned, "--out", tmp_path / "e2e")
    start, end = (
        load_checkpoint(head, Experiment),
        load_checkpoint(tmp_path / "e2e/last.pt", Experiment),
    )
    name = "streams.0.head.class_out.weight"
    assert 0 < (start.ema[name] - end.model[name]).abs().max() < 0.05


def test_changed_adapters_fall_back_to_passes(study: Path, tmp_path: Path) -> None:
    cache, changed = tmp_path / "cache", tmp_path / "last.pt"
    shutil.copytree(study / "cache", cache)
    shutil.copy(study / "e2e/last.pt", changed)
    arguments = ["--checkpoint", changed, "--cache", cache, "--cache.blocks=[1]"]
    good("extract/run.py", *arguments)
    checkpoint = load_checkpoint(changed, Experiment)
    for number, (name, expected) in enumerate(
        {
            "adapters.4.gamma": "0 full and 7 partial",
            "adapters.0.gamma": "7 full and 0 partial",
        }.items()
    ):
        checkpoint.ema[f"streams.0.backbone.{name}"] += 0.5
        save_checkpoint(changed, checkpoint)
        told = good("train/heads.py", *arguments, "--out", tmp_path / str(number))
        assert f"(the weights, settings or code have changed); {expected}" in told, told
        again = good("train/heads.py", *arguments, "--out", tmp_path / f"{number} again")
        assert "7 of 7 spans are there\n" in again
        one, two = (
            read_metrics(tmp_path / n / "metrics.jsonl") for n in (str(number), f"{number} again")
        )
        assert [line.get("loss") for line in one] == [line.get("loss") for line in two]


@pytest.mark.slow
def test_heads_train_while_their_store_is_refreshed_and_pruned(study: Path, tmp_path: Path) -> None:
    """Other weights are extracted into it and what is stale is freed, but not what is read."""
    cache, weights = tmp_path / "cache", tmp_path / "last.pt"
    shutil.copytree(study / "cache", cache)
    shutil.copy(study / "e2e/last.pt", weights)
    arguments = ["--checkpoint", weights, "--cache", cache, "--cache.blocks=[1]"]
    good("extract/run.py", *arguments)
    alone = tmp_path / "alone"
    shutil.copytree(cache, alone)
    # From the stored block on, which is not held in memory: every sample is read.
    epochs = ["--training.epochs=400", "--training.stop_epoch=400"]
    learn = [*epochs, "--training.validate_every=400", "--backbone.trainable_from_block=2"]

    def losses(out: str) -> list[float]:
        file = tmp_path / out / "metrics.jsonl"
        lines = read_metrics(file) if file.exists() else []
        return [line["loss"] for line in lines if "loss" in line]

    @contextmanager
    def training(store: Path, out: str) -> Iterator[Callable[[int], None]]:
        """Train heads within; gives what waits for a number of losses."""
        where = ["--checkpoint", weights, "--cache", store, "--out", tmp_path / out]
        command = [sys.executable, "train/heads.py", *where, "--cache.blocks=[1]", *learn]
        with (
            open(tmp_path / f"{out}.txt", "wb") as said,
            subprocess.Popen(
                list(map(str, command)), cwd=REPOSITORY, env=ENVIRONMENT, stdout=said, stderr=said
            ) as process,
        ):

            def wait_for(count: int) -> None:
                until = time.monotonic() + 300
                while len(losses(out)) < count:
                    assert process.poll() is None and time.monotonic() < until
                    time.sleep(0.1)

            try:
                yield wait_for
            finally:
                process.kill()

    with training(cache, "beside") as wait_for:
        wait_for(2)
        checkpoint = load_checkpoint(weights, Experiment)
        for number in range(2):
            checkpoint.ema["streams.0.backbone.adapters.0.gamma"] += 0.5
            save_checkpoint(weights, checkpoint)
            assert "7 full" in good("extract/run.py", *arguments)
            told = good("cache/show.py", cache, "--verify", "--prune")
            assert "all is well" in told and "stale" in told
            assert re.search(r"in use, so they stayed: [1-9]\d* fingerprints", told), told
            freed = int(re.findall(r"freed .*: ([\d,]+) spans stale", told)[0])
            assert number == 0 or freed > 0  # what the first of these extractions left
        count = len(losses("beside")) + 3
        wait_for(count)  # it goes on
    told = good("cache/show.py", cache, "--verify", "--prune")
    assert "all is well" in told and "in use" not in told and "freed 0 B" not in told
    # It learned what it learns by itself.
    shutil.copy(study / "e2e/last.pt", weights)
    with training(alone, "alone_run") as wait_for:
        wait_for(count)
    assert losses("alone_run")[:count] == losses("beside")[:count]


def everything(store: Store) -> dict[tuple[int, int], np.ndarray[Any, np.dtype[np.float32]]]:
    """Return the numbers of all activations, which are whole and in float32, by their keys."""
    index = store.index
    retention = Retention(store.files, index, store.fingerprints, index.tables, set())
    found = {}
    for entry in map(retention.entry_at, range(len(index.records))):
        rows = retention.read_rows(entry)
        assert rows is not None and entry.rows == entry.total
        found[entry.hi, entry.lo] = rows.view(np.float32)
    return found


@pytest.mark.slow
def test_two_extractions_into_one_folder(study: Path, tmp_path: Path) -> None:
    command = ["extract/run.py", "--checkpoint", study / "e2e/last.pt", "--cache.dtype=float32"]
    good(*command, "--cache", tmp_path / "one")
    both = [*command, "--cache", tmp_path / "both"]
    with subprocess.Popen(
        [sys.executable, *map(str, both)], cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE
    ) as other:
        until = time.monotonic() + 300
        while not (tmp_path / "both" / "parts").exists() and other.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        good(*both)
        other.communicate(timeout=300)
        assert other.returncode == 0
    assert "cache: 7 of 7 spans are there" in good(*both, "--plan")
    assert "all is well" in good("cache/show.py", tmp_path / "both", "--verify", "--prune")
    with Store.open(tmp_path / "one") as one, Store.open(tmp_path / "both") as two:
        assert one.videos == two.videos and one.fingerprints.keys() == two.fingerprints.keys()
        expected, found = everything(one), everything(two)
        assert len(expected) == 7 and found.keys() == expected.keys()
        assert len(two.index.records) == 7  # nothing is there twice
        for key, rows in expected.items():
            assert np.abs(found[key] - rows).max() < 1e-4 * np.abs(rows).max()


@pytest.mark.slow
def test_damage_is_told_by_workers_and_mended(study: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(study / "cache", cache)
    arguments = ["--checkpoint", study / "e2e/last.pt", "--cache", cache]
    good("extract/run.py", *arguments)
    with Store.open(cache) as store:
        stored = sum(summary.spans for summary in store.summaries())
    for shard in (file for file in cache.rglob("c/**/*") if file.is_file()):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    heads = ["train/heads.py", *arguments, "--out", tmp_path / "head", "--training.workers=1"]
    done = script(*heads)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "is damaged" in done.stderr
    advice = re.search(r"`python (cache/show.py .* --verify --prune)`", done.stderr)
    assert advice is not None
    freed = re.search(r"(\d+) spans stale .*, (\d+) damaged", good(*advice[1].split()))
    assert freed is not None and int(freed[1]) + int(freed[2]) == stored and freed[2] == "7"
    assert "7 full and 0 partial" in good("extract/run.py", *arguments)
    assert "all is well" in good("cache/show.py", cache, "--verify")
    assert "cache: 7 of 7 spans are there\n" in good(*heads)

    # Interrupted, it goes on; on another backbone it does not.
    resumed = [*heads, "--resume", "--training.epochs=4"]
    assert "finished; report: " in good(*resumed)
    other = tmp_path / "other.pt"
    checkpoint = load_checkpoint(study / "e2e/last.pt", Experiment)
    checkpoint.ema["streams.0.backbone.adapters.0.gamma"] += 1
    save_checkpoint(other, checkpoint)
    done = script(*[other if a == study / "e2e/last.pt" else a for a in resumed])
    assert done.returncode == 1 and "a different backbone" in done.stderr


def test_the_cache_is_never_in_the_way_of_an_end_to_end_run(
    study: Path, data: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(study / "cache", cache)
    run = ["train/e2e.py", "--config", DEMO, *data, *QUICK, "--cache", cache]
    done = script(*run, "--out", tmp_path / "gone", f"--data.videos={tmp_path / 'nothing'}")
    assert done.returncode == 1 and "there is no folder" in done.stderr
    (cache / "parts").rename(cache / "moved")
    (cache / "parts").write_text("in the way of every writer")
    done = script(*run, "--out", tmp_path / "run", "--training.stop_epoch=2")
    assert done.returncode == 0, done.stderr
    assert "training continues without the cache" in done.stdout + done.stderr


@pytest.mark.slow
def test_videos_that_are_gone_are_needed_only_for_what_is_missing(
    study: Path, data: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(study / "cache", cache)
    arguments = ["--checkpoint", study / "e2e/last.pt", "--cache", cache]
    good("extract/run.py", *arguments)
    gone = [*arguments, f"--data.videos={tmp_path / 'nothing'}"]
    told = good("train/heads.py", *gone, "--out", tmp_path / "head")
    assert "7 of 7 spans are there\n" in told
    other = [*gone, "--direction=reversed"]
    done = script("train/heads.py", *other, "--out", tmp_path / "other")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the videos are gone" in done.stderr and "python extract/run.py" in done.stderr
    assert "4 of 4 videos have no file in" in told
    told = good("extract/run.py", *other, "--data.bad_videos=skip", "--plan")
    assert "cache: 0 of 7 spans are there, 7 are left out, for 6 videos are gone\n" in told
    done = script("evaluate/run.py", *gone)
    assert done.returncode == 1 and "python extract/run.py" in done.stderr


@pytest.mark.slow
def test_two_processes_share_passes_and_head_training(study: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", study / "e2e/last.pt", "--cache", tmp_path / "cache"]
    good(
        "extract/run.py", *arguments, "--directions", "forward", "reversed", launcher=TWO_PROCESSES
    )
    parts = list((tmp_path / "cache/parts").iterdir())
    assert len(parts) == 4  # of two processes, each with a backbone per direction
    for direction in ("forward", "reversed"):
        told = good("extract/run.py", *arguments, "--plan", f"--direction={direction}")
        assert "spans are there\n" in told
    out = tmp_path / "head"
    quick = ["--training.global_batch=2", "--head.drop_path=0"]
    good("train/heads.py", *arguments, *quick, "--out", out, launcher=TWO_PROCESSES)
    assert any("validation" in line for line in read_metrics(out / "metrics.jsonl"))


@pytest.mark.slow
def test_two_processes_leave_the_features_of_their_validations(
    data: list[str], tmp_path: Path
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "run"
    run = ["train/e2e.py", "--config", DEMO, *data, *QUICK, "--cache", cache, "--out", out]
    short = ["--training.stop_epoch=2", "--training.global_batch=2"]
    good(*run, *short, launcher=TWO_PROCESSES)
    assert len(list((cache / "parts").iterdir())) == 2
    last = ["--checkpoint", out / "last.pt", "--cache", cache, "--of", "validation", "--plan"]
    assert "cache: 3 of 3 spans are there\n" in good("extract/run.py", *last)
    assert "all is well" in good("cache/show.py", cache, "--verify")


@pytest.mark.slow
def test_activations_are_kept_wherever_fsspec_reaches(study: Path, tmp_path: Path) -> None:
    """`dir::` is not seen through: all goes the way that object stores go."""
    (tmp_path / "byte").write_bytes(b"x")
    place, _ = url_to_fs(f"dir::file://{tmp_path}")
    if place.cat_ranges(["byte"], [0], [1]) != [b"x"]:
        pytest.skip("this fsspec cannot read ranges below dir::")
    arguments = ["--checkpoint", study / "e2e/last.pt", "--cache", f"dir::file://{tmp_path}/far"]
    assert "7 full" in good("extract/run.py", *arguments)
    told = good("train/heads.py", *arguments, "--out", tmp_path / "head")
    assert "cache: 7 of 7 spans are there\n" in told
    assert "all is well" in good("cache/show.py", arguments[-1], "--verify")


def test_a_plan_that_does_not_fit_is_refused(
    study: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    import extract.run

    arguments = [
        "run.py",
        "--checkpoint",
        str(study / "e2e/last.pt"),
        "--cache",
        str(tmp_path / "c"),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.chdir(REPOSITORY)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match=r"activations need up to .* free; make room"):
        cli.run(extract.run.main)


@pytest.mark.slow
def test_a_ladder_learns_from_the_cache_alone(data: list[str], tmp_path: Path) -> None:
    """The transformer beside it never changes: what is stored stays true while it learns."""
    cache = ["--cache", tmp_path / "cache"]
    side = ["--backbone.mode=side", "--backbone.adapters_from_block=4"]
    first = ["--config", DEMO, *data, *QUICK, *side, "--cache.dtype=float32"]
    good("train/e2e.py", *first, "--training.stop_epoch=1", "--out", tmp_path / "e2e")
    start = ["--checkpoint", tmp_path / "e2e/last.pt", *cache]
    learn = ["--backbone.trainable_from_block=4", "--training.stop_epoch=2"]
    good("train/heads.py", *start, *learn, "--out", tmp_path / "run")
    before, after = (
        load_checkpoint(tmp_path / f"{run}/last.pt", Experiment).ema for run in ("e2e", "run")
    )
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert {key.split(".backbone.")[1][:9] for key in moved if ".backbone." in key} == {"ladder.ad"}
    again = good("train/heads.py", *start, *learn, "--out", tmp_path / "again")
    assert "cache: 7 of 7 spans are there\n" in again
