"""Ways to train: hours worked out by hand, bytes as they are really written, the table."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

import train.cost.measure
from cache.store import Store
from configs import cli
from configs.loader import load
from extract.activations.plan import SpanRequest, estimate_s, full_clips, needed_bytes, plan
from extract.settings.backbone import Cut
from extract.video.reader import VideoError, VideoReader
from tests.conftest import REPOSITORY
from tests.forks import script
from tests.marks import slow
from tests.test_e2e import DEMO, QUICK, TWO_PROCESSES
from tests.test_e2e import script as launched
from train.config import Experiment
from train.cost.measure import ReadingCost, StepCost, measure_reading, measure_step
from train.cost.routes import (
    Routes,
    TrainingRoute,
    end_to_end_routes,
    measure_routes,
    reason_not_to_compare,
)
from train.cost.workload import Workload, cached_block, count_workload, freeze_below
from train.data.cached import ensure_cached, evaluation_spans, training_spans
from train.data.items import Subset, VideoItem
from train.data.truth import load_annotations, target_classes
from train.data.videos import load_items
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.sources import build_detector
from train.detector.training import DetectionTask
from train.engine.loop import TrainingRun

COLUMNS = 7
WORK = Workload(
    processes=2,
    workers=2,
    cores=4,
    epochs=10,
    windows=400,
    samples=100.0,
    clips=10,
    validations=3,
    validation_windows=40,
    validation_samples=6000,
    videos_bytes=5_000_000_000,
    frames=90_000,
    cached_frames=30_000,
    cached_bytes=6_000_000_000,
)
READING = ReadingCost(
    videos=("a", "b"),
    decoded_s=0.02,
    cropped_s=0.005,
)
PIXELS = StepCost(trained_s=1.2, tested_s=0.6)


def by_hand(
    work: Workload = WORK,
    reading: ReadingCost = READING,
    videos_free: int = 7_000_000_000,
    store: tuple[str, int | None] = ("runs/cache", 5_000_000_000),
    cached: int = 2,
) -> Routes:
    def route(name: str, step: StepCost, *numbers: float) -> TrainingRoute:
        filling_s, kept, needed = numbers
        bounds = filling_s / 3600, int(kept), int(needed), *store
        return TrainingRoute(name, "augmentation", step, work.run_h(step), *bounds)

    features = route("cached features", StepCost(0.2, 0.1), 50, 10**9, 1.5e9)
    part = route("cached block 8", StepCost(0.5, 0.3), 37.5, 8 * 10**9, 8.5e9)
    decoding = end_to_end_routes(work, reading, PIXELS, "data", videos_free)
    closed = ["cached block: why"] * (2 - cached)
    return Routes((*decoding, *(features, part)[:cached]), closed, work, reading, 30.0)


def seconds(found: Routes) -> list[tuple[float, float, float]]:
    """Return preparation, first run and further run of every way."""
    return [
        (3600 * r.preparation_hours, 3600 * r.first_run_hours, 3600 * r.further_run_hours)
        for r in found.routes
    ]


def test_hours_are_those_worked_out_by_hand() -> None:
    found = seconds(by_hand())
    # Raw: a window takes 100 · (0.02 + 0.005) = 2.5 s, with two workers 1.25 s; the network 1.2 s.
    # 400 · 1.25 / 2 processes = 250 s. A validation: 6000 · 0.02 / 2 = 60 s against
    # 40 · 0.6 = 24 s; 3 · 60 / 2 = 90 s.
    assert found[0] == pytest.approx((0, 340, 340))
    # The network is slower: 400 · 1.2 / 2 + 3 · 24 / 2; all is decoded once in 30000 · 0.02 / 4.
    assert found[1] == pytest.approx((150, 426, 276))
    # 400 · 0.2 / 2 + 3 · 40 · 0.1 / 2
    assert found[2] == pytest.approx((50, 96, 46))
    # 400 · 0.5 / 2 + 3 · 40 · 0.3 / 2
    assert found[3] == pytest.approx((37.5, 155.5, 118))


def test_without_workers_decoding_comes_on_top() -> None:
    found = seconds(by_hand(replace(WORK, workers=0)))
    # 400 · (2.5 + 1.2) / 2 + 3 · (120 + 24) / 2
    assert found[0][2] == pytest.approx(740 + 216)
    assert found[1][0] == pytest.approx(300)


def test_bytes_of_decoded_frames() -> None:
    raw, frames, *_ = by_hand().routes
    assert [r.bytes for r in (raw, frames)] == [0, 6_000_000_000]
    assert (raw.gives_up, raw.place) == ("nothing", None)
    assert "equal to the bit" in frames.gives_up


def test_a_disk_that_is_too_small_is_marked() -> None:
    found = by_hand()
    assert [r.fits for r in found.routes] == [True] * 3 + [False]
    rows = cells(found.text())
    assert [row[2] for row in rows] == ["", "7.0 GB", "5.0 GB", "5.0 GB: TOO SMALL"]
    assert "no room on the disk: cached block 8" in found.advice()
    # What is needed meanwhile counts, too.
    tight = by_hand(store=("runs/cache", 1_400_000_000)).routes[2]
    assert tight.fits is False and tight.bytes < 1_400_000_000
    nobody_knows = by_hand(store=("s3://far", None))
    assert nobody_knows.routes[2].fits is None and "unknown" in nobody_knows.text()
    full = by_hand(videos_free=0)
    assert full.advice()[2] == "no room on the disk: frames, cached block 8"
    assert full.advice()[3].startswith("recommended end to end: raw; ")


def test_the_advice_follows_from_the_numbers() -> None:
    disks, bound, _, best, origin = by_hand().advice()
    assert "disk of data for frames, on that of runs/cache for activations" in disks
    times = "raw: of a window, decoding takes 1.25 s (2 at once), the network 1.20 s"
    assert bound.startswith(times) and "proxies" in bound
    assert "raw for one run, frames for many" in best and "13.5%" in best
    assert "30 s of trials on 2 videos" in origin
    slow = replace(READING, decoded_s=0.2)
    _, bound, _, best, _ = by_hand(reading=slow).advice()
    assert "takes 10.25 s" in bound and "recommended end to end: frames;" in best
    quick = replace(READING, decoded_s=0.001)
    _, bound, _, best, _ = by_hand(reading=quick).advice()
    assert "end to end: raw;" in best and "proxies" not in bound
    _, bound, *_ = by_hand(replace(WORK, workers=0)).advice()
    assert "2.50 s (in turns, without workers)" in bound


def test_closed_ways_are_listed() -> None:
    found = by_hand(cached=0)
    assert [row[0] for row in cells(found.text())] == ["raw", "frames"]
    assert [record["name"] for record in found.to_dict()["routes"]] == ["raw", "frames"]
    assert found.advice().count("not open: cached block: why") == 2
    assert "for activations" not in found.advice()[0]
    assert "cached" not in found.advice()[-2]
    assert "not open" not in by_hand().text()


def cells(table: str) -> list[list[str]]:
    """Return the rows of a printed table without its head."""
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == COLUMNS for row in rows)
    return rows


def number(text: str) -> float:
    """Return bytes or hours as a table shows them."""
    value, unit = text.replace(",", "").split()
    sizes = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    return float(value) * (sizes | {"s": 1 / 3600, "min": 1 / 60, "h": 1.0})[unit]


def the_same(table: str, records: list[dict[str, Any]]) -> None:
    """See that the table's numbers are those of the JSON, as far as it shows them."""
    names = "bytes", "preparation_hours", "first_run_hours", "further_run_hours"
    rows = cells(table)
    assert [row[0] for row in rows] == [record["name"] for record in records]
    for row, record in zip(rows, records, strict=True):
        for place, name in zip((1, 3, 4, 5), names, strict=True):
            off = 0.06e6 if name == "bytes" and record[name] < 1e9 else 0.51 / 3600
            assert math.isclose(number(row[place]), record[name], rel_tol=0.06, abs_tol=off)
        assert ("TOO SMALL" in row[2]) == (record["fits"] is False)
        assert row[6] == record["gives_up"]


def test_json_and_table_say_the_same() -> None:
    for found in (by_hand(), by_hand(cached=1), by_hand(videos_free=0)):
        the_same(found.text(), json.loads(json.dumps(found.to_dict()))["routes"])


# ------------------------------------------------------------------ counted from real files


def experiment(data: list[str], *overrides: str) -> Experiment:
    return load(Experiment, DEMO, [*data, *QUICK, *overrides])


def loaded(config: Experiment, subset: str, store: Store | None = None) -> Subset[VideoItem]:
    return load_items(config.data, load_annotations(config.data), subset, None, store)


def detector_of(config: Experiment) -> Detector:
    return build_detector(config, target_classes(config.data, load_annotations(config.data)))


@pytest.mark.parametrize(
    ("start", "every", "stop", "expected"),
    [(2, 2, 4, 2), (40, 5, 60, 5), (1, 1, 7, 7), (50, 3, 10, 1), (0, 4, 10, 3)],
)
def test_validations_are_those_of_a_run(
    data: list[str], start: int, every: int, stop: int, expected: int
) -> None:
    config = experiment(data, "--training.epochs=60")
    training = replace(config.training, validate_from=start, validate_every=every, stop_epoch=stop)
    (item, *_) = items = loaded(config, "training")
    assert (
        count_workload(replace(config, training=training), items, [item], 1).validations == expected
    )


def test_a_run_is_counted(data: list[str]) -> None:
    config = experiment(data, "--training.workers=1")
    training, validation = loaded(config, "training"), loaded(config, "validation")
    work = count_workload(config, training, validation, 1)
    lengths = [item.frames for item in (*training, *validation)]
    # Four videos, two a step, four epochs; windows of 64 samples, every second frame.
    assert (work.windows, work.epochs, work.validations) == (16, 4, 2)
    assert (work.clips, work.processes) == (4, 1)
    assert work.frames == sum(lengths)
    assert work.samples == np.mean([min(64, -(-n // 2)) for n in lengths[:4]])
    assert work.validation_samples == sum(-(-n // 2) for n in lengths[4:])
    assert work.cached_frames == sum(-(-n // 2) for n in lengths)
    assert work.videos_bytes == sum(i.path.stat().st_size for i in (*training, *validation))
    nothing = count_workload(config, training, [], 1)
    assert (nothing.validations, nothing.validation_windows) == (0, 0)
    # Six windows an update, of four videos: they go round again, on one process or on three.
    six = replace(config, training=replace(config.training, global_batch=6))
    assert [count_workload(six, training, [], processes).windows for processes in (1, 3)] == [
        4 * 6
    ] * 2
    assert count_workload(experiment(data), training, [], 1).workers == 0


@pytest.mark.parametrize(("cores", "here", "workers"), [(8, 1, 4), (8, 4, 2), (2, 4, 1), (3, 1, 3)])
def test_workers_that_have_no_core_do_not_count(
    data: list[str], monkeypatch: pytest.MonkeyPatch, cores: int, here: int, workers: int
) -> None:
    config = experiment(data, "--training.workers=4", "--training.global_batch=8")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    # As many machines again take part.
    work = count_workload(config, loaded(config, "training"), [], 2 * here)
    assert (work.workers, work.cores) == (workers, cores)


@pytest.mark.parametrize("crops", [True, False])
def test_frames_take_the_bytes_that_they_would_be_written_in(
    data: list[str], tmp_path: Path, crops: bool
) -> None:
    crop = "[0.5, 1.0]" if crops else "null"
    config = experiment(data, f"--pixels.random_crop={crop}")
    training, validation = loaded(config, "training"), loaded(config, "validation")
    work = count_workload(config, training, validation, 1)
    written = 0
    for item in (*training, *validation):
        with av.open(str(item.path)) as container:
            every = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        video = torch.from_numpy(np.stack(every[::2])).permute(0, 3, 1, 2)
        if crops and item in training:
            video = functional.resize(video, [config.pixels.train_short_side], antialias=True)
        else:
            video = functional.resize(video, [config.pixels.size], antialias=True)
            video = functional.center_crop(video, [config.pixels.size])
        np.save(tmp_path / "video.npy", video.permute(0, 2, 3, 1).numpy())
        checksums = 4 * (len(video) + 3)  # of every frame, of all; height and width
        written += (tmp_path / "video.npy").stat().st_size + checksums
    assert work.cached_bytes == written


def test_resized_videos_are_asked_for_other_frames(data: list[str]) -> None:
    config = experiment(data, "--sampling.method=resize", "--cache.span=window")
    (item, *_) = loaded(config, "training")
    assert count_workload(config, [item], [], 1).cached_frames == min(64, item.frames)
    assert count_workload(config, [replace(item, frames=20)], [], 1).cached_frames == 20


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cut", ["features", 3])
def test_activations_take_the_bytes_that_they_are_stored_in(
    data: list[str], tmp_path: Path, accelerator: Accelerator, cut: Cut, dtype: str
) -> None:
    config = experiment(data, f"--cache.dtype={dtype}")
    detector = detector_of(config).eval()
    with Store.open(tmp_path / "cache", "a") as store:
        training, validation = (loaded(config, s, store) for s in ("training", "validation"))
        activations = activations_of(detector, store, ["weights.pt"])
        overlap = config.sampling.validation_overlap
        spans = training_spans(training, config.sampling, "forward", config.cache.span)
        spans += evaluation_spans(validation, overlap, config.sampling, "forward")
        wanted = [SpanRequest(activations[0], spans, (cut,))]
        lacks = plan(wanted, accelerator)
        clips = full_clips(lacks, 0)
        both = [training, validation]
        cached, _ = ensure_cached(activations, [spans], cut, both, accelerator, 0)
        assert lacks.bytes == sum(cached.places[0].read(span).nbytes for span in spans)
        assert needed_bytes(lacks) == 2 * lacks.bytes
        blocks = 6 if cut == "features" else 4
        assert clips == sum(span.window.samples // 16 for span in spans) * blocks / 6
        # What is there costs nothing; what begins at a stored block costs the blocks after it.
        rest = plan(wanted, accelerator)
        assert (rest.bytes, rest.frames, full_clips(rest, 0)) == (0, 0, 0.0)
        assert estimate_s(rest, 0) == 0
        if cut == 3:
            rest = plan([SpanRequest(activations[0], spans, ("features",))], accelerator)
            assert rest.frames == 0 and full_clips(rest, 0) == clips / 2
        activations[0].close()


@pytest.mark.parametrize(
    ("settings", "k", "cut"),
    [
        ((), 4, 3),  # three quarters of six blocks
        (("--cache.blocks=[1, 2]",), 3, 2),
        (("--cache.blocks=[1, 5]",), 2, 1),  # nothing learns after the last block
        (("--backbone.trainable_from_block=2",), 2, 1),
        (("--backbone.trainable_from_block=6",), 4, 3),
        (("--backbone.second_from_block=3",), 3, 2),
        (("--backbone.mode=side", "--backbone.adapters_from_block=4"), 4, "ladder"),
        (("--backbone.mode=side",), 1, "ladder"),
        (("--backbone.mode=full",), 4, 3),
        (("--backbone.mode=frozen",), None, None),
    ],
)
def test_where_a_cached_block_begins(
    data: list[str], settings: tuple[str, ...], k: int | None, cut: Cut | None
) -> None:
    config = experiment(data, *settings)
    assert cached_block(config) == k
    if k is not None:
        assert freeze_below(config, k).backbone.last_frozen_cut == cut


BLOCK = "augmentation; drop path and what learns below block {}"
HEAD_ONLY = "cached block: nothing of the backbone would learn after one"
BACKBONE_ONLY = "cached features: nothing after the backbone learns"


@pytest.mark.parametrize(
    ("settings", "names", "lost", "closed"),
    [
        (
            (),
            ["cached features", "cached block 3"],
            ["augmentation, drop path, adapters that learn", BLOCK.format(4)],
            [],
        ),
        (
            ("--backbone.mode=frozen",),
            ["cached features"],
            ["augmentation, drop path"],
            [HEAD_ONLY],
        ),
        (("--head.learns=false",), ["cached block 3"], [BLOCK.format(4)], [BACKBONE_ONLY]),
        slow(
            ("--backbone.mode=side", "--backbone.adapters_from_block=4"),
            ["cached features", "cached ladder"],
            ["augmentation, drop path, adapters beside that learn", BLOCK.format(4)],
            [],
        ),
    ],
)
def test_what_cached_ways_give_up_and_which_are_closed(
    data: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    names: list[str],
    lost: list[str],
    closed: list[str],
) -> None:
    step = StepCost(0.2, 0.1)
    monkeypatch.setattr("train.cost.routes.measure_step", lambda *_: step)
    monkeypatch.setattr("train.cost.routes.measure_reading", lambda *_: READING)
    monkeypatch.setattr("train.cost.routes.estimate_s", lambda *_: 36.0)
    config = experiment(data, *settings)
    detector = detector_of(config).eval()
    with Store.open(tmp_path / "cache", "inspect") as store:
        training, validation = (loaded(config, s, store) for s in ("training", "validation"))
        activations = activations_of(detector, store, ["weights.pt"])
        found = measure_routes(detector, activations, training, validation, accelerator)
    assert found is not None and found.closed == closed
    cached = found.routes[2:]
    assert [route.name for route in cached] == names
    assert [route.gives_up for route in cached] == lost
    work = count_workload(config, training, validation, 1)
    for route in cached:
        assert route.place == store.url and route.needed_bytes == 2 * route.bytes > 0
        assert route.preparation_hours == 0.01
        assert route.further_run_hours == work.run_h(step)


# ------------------------------------------------------------------ trials


def test_long_windows_are_not_read_to_their_end(
    data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(data)
    (item, *_) = loaded(config, "training")
    chunks, original = list[int](), VideoReader.chunks

    def counted(self: VideoReader, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for chunk in original(self, rising):
            chunks.append(len(chunk))
            yield chunk

    monkeypatch.setattr(VideoReader, "chunks", counted)
    measure_reading(config, [item])
    assert len(chunks) == 1 + 4  # the first one warms up
    chunks.clear()
    monkeypatch.setattr(train.cost.measure, "ENOUGH_S", 0.0)
    measure_reading(config, [item])
    assert len(chunks) == 1 + 1


def test_bad_videos_are_no_matter_while_one_can_be_read(data: list[str], tmp_path: Path) -> None:
    config = experiment(data)
    training = loaded(config, "training")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    training[1] = replace(training[1], path=tmp_path / "bad.mp4")
    assert measure_reading(config, training).videos == (training[3].name,)
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        measure_reading(config, [training[1]])


@pytest.mark.slow
def test_steps_are_those_of_the_loop_and_long_ones_are_tried_on_fewer_clips(
    data: list[str], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's fixed cost counts once, however few clips tell what all take."""
    config = experiment(data, "--training.global_batch=3", "--sampling.window_size=128")
    (item, *_) = loaded(config, "training")
    seen = list[tuple[Any, ...]]()
    clock = [0.0]

    def update(self: TrainingRun[DetectionTask], step: int, batches: Any) -> None:
        (batch,) = batches
        clips = batch.inputs[0].shape[2] // (16 if batch.start is None else 8)
        seen.append((batch.start, *batch.mask.shape, clips))
        clock[0] += 0.4 + 0.1 * clips

    monkeypatch.setattr(TrainingRun, "update", update)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for enough, tried in ((math.inf, (1, 2, 4, 8)), (0.7, (1, 2, 4)), (0.0, (1, 2))):
        for cut in (None, "features"):
            seen.clear()
            monkeypatch.setattr(train.cost.measure, "ENOUGH_S", enough)
            cost = measure_step(config, tuple("abcdef"), item, accelerator, cut)
            expected = tried if cut is None else (8,)
            repeats = 3 if 0.4 + 0.1 * expected[0] <= enough else 1
            assert seen[::repeats] == [(cut, 3, 128, clips) for clips in expected]
            assert cost.trained_s == pytest.approx((0.4 + 0.1 * 8) / 3)


@pytest.mark.parametrize(
    "settings",
    [
        ("--backbone.mode=side",),
        slow(("--fusion.method=gated",)),
        slow(()),
        slow(("--backbone.mode=full",)),
        slow(("--backbone.mode=frozen",)),
        slow(("--backbone.second_from_block=2", "--head.learns=false")),
        slow(("--fusion.method=fc",)),
        slow(("--sampling.method=resize", "--cache.span=window")),
        slow(("--pixels.random_crop=[0.5, 1]", "--pixels.flip=0.5", "--pixels.rand_augment=2")),
        slow(("--pixels.size=192", "--pixels.train_short_side=192")),
    ],
)
def test_every_kind_of_experiment_can_be_tried(
    data: list[str],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
) -> None:
    monkeypatch.setattr(train.cost.measure, "ENOUGH_S", 0.01)
    config = experiment(data, *settings)
    items, threads, k = loaded(config, "training"), torch.get_num_threads(), cached_block(config)
    reading = measure_reading(config, items)
    assert torch.get_num_threads() == threads
    assert len(reading.videos) == 2  # every second of four
    assert reading.decoded_s > 0 < reading.cropped_s
    tried: list[tuple[Experiment, Cut | None]] = [(config, None)]
    if config.head.learns:
        tried += [(freeze_below(config, config.backbone.depth), "features")]
    if k is not None:
        part = freeze_below(config, k)
        tried += [(part, part.backbone.last_frozen_cut)]
    for each, cut in tried:
        cost = measure_step(each, tuple("abcdef"), items[0], accelerator, cut)
        assert cost.tested_s > 0 < cost.trained_s


# ------------------------------------------------------------------ as users run it


def told_by(*arguments: object, code: int = 0) -> str:
    done = script("extract/run.py", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_plan_compares_the_ways_and_leaves_no_trace(data: list[str], tmp_path: Path) -> None:
    common = ["--config", DEMO, *data, *QUICK, "--cache", tmp_path / "cache"]
    told = told_by(*common, "--plan", tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    content = json.loads((tmp_path / "plan.json").read_text())
    the_same(told, content["routes"])
    names = "raw", "frames", "cached features", "cached block 3"
    assert tuple(record["name"] for record in content["routes"]) == names
    assert content["advice"] == told.splitlines()[-len(content["advice"]) :]
    assert "\na run: 4 epochs, 16 windows, 2 validations of 3 windows; 1 process with 0" in told
    # Today's lines still come first.
    assert told.startswith("cache: 0 of 7 spans are there; 7 full")
    assert content["work"]["validation_windows"] == 3

    told = told_by(*common, "--plan", "--of", "validation")
    assert "| raw |" not in told and len(list(tmp_path.iterdir())) == 1
    told = told_by(*common, "--plan", "--directions", "forward", "reversed")
    assert "for each of the 2 streams alone" in told
    wrong = told_by(*common, "--plan", tmp_path / "plan.json", "--of", "test", code=1)
    assert "add train to --of" in wrong
    assert "not a .json file" in told_by(*common, "--plan", tmp_path / "x/plan.json", code=1)


@pytest.mark.slow
def test_two_processes_try_their_steps_together(data: list[str], tmp_path: Path) -> None:
    arguments = ["--config", DEMO, *data, *QUICK, "--cache", tmp_path / "cache", "--plan"]
    done = launched("extract/run.py", *arguments, launcher=TWO_PROCESSES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("| cached features") == 1


def test_it_is_told_why_there_is_nothing_to_compare(data: list[str], tmp_path: Path) -> None:
    config = experiment(data)
    detector, training = detector_of(config), loaded(config, "training")
    assert reason_not_to_compare(detector, training, training) is None
    gone = [replace(training[0], path=tmp_path / "gone.mp4")]
    assert "1 videos are gone" in str(reason_not_to_compare(detector, training, gone))
    idle = [replace(item, segments=np.zeros((0, 2))) for item in training]
    assert reason_not_to_compare(detector, idle, []) == "no training video has an action"


def test_nothing_is_compared_where_nothing_learns(data: list[str], tmp_path: Path) -> None:
    still = ["--head.learns=false", "--backbone.trainable_from_block=6"]
    told = told_by("--config", DEMO, *data, *QUICK, *still, "--cache", tmp_path / "c", "--plan")
    assert told.splitlines()[-1] == (
        "ways to train are not compared: nothing learns in this experiment"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_is_told_in_the_table_and_by_the_exit_code(
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import extract.run

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    arguments = ["--config", str(DEMO), *data, *QUICK, "--cache", str(tmp_path / "c"), "--plan"]
    monkeypatch.setattr("sys.argv", ["run.py", *arguments])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.chdir(REPOSITORY)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match="activations need up to"):
        cli.run(extract.run.main)
    AcceleratorState._reset_state(reset_partial_state=True)
    table = capsys.readouterr().out
    assert ["TOO SMALL" in row[2] for row in cells(table)] == [False, True, True, True]
