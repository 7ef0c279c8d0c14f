"""Features that are read again and again, held decoded: the same samples, and no more reads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from cache.address import DTYPES, VideoInfo
from cache.dtypes import Dtype
from cache.store import Store
from extract.activations.stored import Cached
from extract.parallel.loader import make_loader
from extract.sampling.spans import Span
from extract.sampling.windows import evaluation_windows
from extract.settings.sampling import Direction, SamplingConfig, SpanKind
from train.data import cached as cached_module
from train.data import in_memory
from train.data.batch import Sample, collate
from train.data.cached import (
    CachedStreams,
    evaluation_spans,
    hold_features,
    read_windows,
    sample_inputs,
    training_spans,
)
from train.data.in_memory import HeldRows, free_memory
from train.data.items import VideoItem

SAMPLING = SamplingConfig(window_size=96, snippet_stride=2)
BOTH: tuple[Direction, Direction] = ("forward", "reversed")
WIDTH = 96


def item(number: int) -> VideoItem:
    frames = 150 + 97 * number
    info = VideoInfo(f"{number:064x}", f"{number}.mp4", 1, frames, 25.0)
    truth = np.array([[frames / 3, frames / 2]])
    fields = (info.name, Path(info.name), frames, frames / 25, 25.0, truth, np.zeros(1, np.int64))
    return VideoItem(*fields, (), identity=info)


def stored(
    folder: Path, spans: Sequence[Sequence[Span]], dtype: Dtype = "float16"
) -> CachedStreams:
    """Write features of both directions' spans and return where they are."""
    store = Store.open(folder, "a")
    places = tuple(Cached(store, "features", digit * 32, dtype) for digit in "12")
    with store.writer() as writer:
        for place, some in zip(places, spans, strict=True):
            for span in some:
                rows = torch.randn(span.rows, WIDTH).to(DTYPES[dtype])
                writer.write(place.address(span), rows)
    store.refresh()
    return CachedStreams(places)


def stored_to_train_on(
    folder: Path, items: Sequence[VideoItem], kind: SpanKind = "video", dtype: Dtype = "float16"
) -> CachedStreams:
    spans = [training_spans(items, SAMPLING, direction, kind) for direction in BOTH]
    return replace(stored(folder, spans, dtype), trained_on=kind)


def held(
    cached: CachedStreams, items: Sequence[VideoItem], accelerator: Accelerator
) -> CachedStreams:
    """Return the streams with what training needs in memory."""
    spans = [training_spans(items, SAMPLING, d, cached.trained_on) for d in BOTH]
    device = accelerator.device
    return replace(cached, held=hold_features(cached, spans, accelerator, "train on", device))


def samples(items: Sequence[VideoItem], cached: CachedStreams) -> list[tuple[Tensor, ...]]:
    """Return the inputs of three epochs."""
    return [
        sample_inputs(np.random.default_rng((epoch, n)), video, SAMPLING, BOTH, cached)[1]
        for epoch in range(3)
        for n, video in enumerate(items)
    ]


def test_test_windows_are_those_of_the_store(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item(number) for number in range(3)]
    spans = [evaluation_spans(items, 0.5, SAMPLING, d) for d in BOTH]
    cached = stored(tmp_path, spans)

    def windows(cached: CachedStreams) -> list[tuple[Tensor, ...]]:
        return [
            inputs
            for video in items
            for inputs in read_windows(
                video, evaluation_windows(video, 0.5, SAMPLING), SAMPLING, BOTH, cached
            )
        ]

    expected = windows(cached)
    rows = hold_features(cached, spans, accelerator, "validate on", torch.device("cpu"))
    monkeypatch.setattr(Store, "_read", None)  # the store is not asked again
    for ours, theirs in zip(windows(replace(cached, held_tests=rows)), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("in_memory", [False, True])
def test_windows_of_a_whole_video_are_cut_from_one_read(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    """Imported features: windows overlap, and each row is decoded once all the same."""
    video, sampling = item(5), replace(SAMPLING, scale_factor=2)  # a row is a feature step
    spans = [evaluation_spans([video], 0.5, sampling, "forward", "video")]
    both = stored(tmp_path, [*spans, *spans])
    cached = replace(both, places=both.places[:1], tested_on="video")
    whole = cached.places[0].read(spans[0][0]).float().mT
    if in_memory:
        rows = hold_features(cached, spans, accelerator, "validate on", torch.device("cpu"))
        cached = replace(cached, held_tests=rows)
    asked, read = [], Store.read

    def count(store: Store, *wanted: Any) -> Tensor:
        asked.append(wanted)
        return read(store, *wanted)

    monkeypatch.setattr(Store, "read", count)
    windows = evaluation_windows(video, 0.5, sampling)[1:]  # a worker's share
    found = list(read_windows(video, windows, sampling, ("forward",), cached))
    assert len(asked) == (0 if in_memory else 1) and len(windows) > 2
    for window, (inputs,) in zip(windows, found, strict=True):
        first = round(window.start / sampling.step)
        assert torch.equal(inputs[:, : window.valid], whole[:, first : first + window.valid])
        assert inputs.shape == (WIDTH, window.size)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["video", "window"])
def test_samples_are_those_of_the_store(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: SpanKind,
    dtype: Dtype,
) -> None:
    items = [item(number) for number in range(4)]
    cached = stored_to_train_on(tmp_path, items, kind, dtype)
    expected = samples(items, cached)
    kept = held(cached, items, accelerator)
    (line,) = capsys.readouterr().out.splitlines()
    assert "held decoded in memory" in line
    monkeypatch.setattr(Store, "_read", None)  # the store is not asked again
    for ours, theirs in zip(samples(items, kept), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == DTYPES[dtype] and torch.equal(one, other)
            one += 1  # what is drawn is no part of what is held
    assert all(
        torch.equal(one, other)
        for ours, theirs in zip(samples(items, kept), expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_activations_travel_as_they_are_stored(
    tmp_path: Path, accelerator: Accelerator, dtype: Dtype
) -> None:
    items = [item(number) for number in range(2)]
    cached = stored_to_train_on(tmp_path, items, dtype=dtype)
    for each in (cached, held(cached, items, accelerator)):
        for inputs in samples(items, each):
            assert {x.dtype for x in inputs} == {DTYPES[dtype]}
    window = evaluation_windows(items[0], 0.5, SAMPLING)[0]
    mask = torch.from_numpy(window.mask())
    truth = Sample("v", window, inputs, mask, (torch.zeros(0, 2),) * 2, torch.zeros(0))
    moved = collate([truth]).to(accelerator.device)
    for x, of in zip(moved.inputs, inputs, strict=True):
        assert x.dtype == torch.float32 and torch.equal(x[0], of.float())


def test_what_does_not_fit_is_read_window_by_window(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = [item(number) for number in range(3)]
    cached = stored_to_train_on(tmp_path, items)
    spans = [s for d in BOTH for s in training_spans(items, SAMPLING, d, "video")]
    needed = sum(span.rows for span in spans) * WIDTH * 2
    for processes in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))  # each has memory of its own
        for spare, fits in ((0, True), (-8, False)):
            free = (needed * processes + spare) / cached_module.FREE_SHARE
            monkeypatch.setattr(cached_module, "free_memory", lambda free=free: free)
            assert bool(held(cached, items, accelerator).held) == fits
            (line,) = capsys.readouterr().out.splitlines()
            assert ("window by window" in line) != fits
    monkeypatch.setattr(cached_module, "free_memory", lambda: 0)  # nobody can say
    assert held(cached, items, accelerator) == cached


def test_blocks_and_videos_without_actions_are_not_held(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    cached = stored_to_train_on(tmp_path, [item(0)])
    blocks = replace(cached, places=tuple(replace(place, cut=3) for place in cached.places))
    assert held(blocks, [item(0)], accelerator) == blocks
    nothing = replace(item(0), segments=np.zeros((0, 2)))
    assert held(cached, [nothing], accelerator) == cached


class Held(Dataset[Tensor]):
    """Reads one span and leaves a mark where it stands."""

    def __init__(self, rows: HeldRows, items: Sequence[VideoItem]) -> None:
        self.rows = rows
        self.spans = training_spans(items, SAMPLING, "forward", "video")

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Tensor:
        read = self.rows.read(self.spans[number])
        self.rows.rows.fill_(number)
        return read


@pytest.mark.slow
def test_spawned_workers_share_the_memory(tmp_path: Path, accelerator: Accelerator) -> None:
    items = [item(number) for number in range(2)]
    cached = stored_to_train_on(tmp_path, items)
    (rows, _) = held(cached, items, accelerator).held
    dataset = Held(rows, items)
    expected = rows.read(dataset.spans[0])
    first, second = make_loader(dataset, None, workers=1)
    assert torch.equal(first, expected)
    assert torch.equal(second, torch.zeros_like(second))
    assert torch.equal(rows.rows, torch.ones_like(rows.rows))  # seen here, too


def test_free_memory_is_what_the_group_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setattr(in_memory, "MEMINFO", machine)
    monkeypatch.setattr(in_memory, "CGROUP", tmp_path)
    assert free_memory() == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 50\n")
    assert free_memory() == 1000 * 1024
    (tmp_path / "memory.max").write_text("900\n")
    assert free_memory() == 250
    (tmp_path / "memory.max").write_text("500\n")
    assert free_memory() == 0
    machine.unlink()
    assert free_memory() == 0


def test_rows_on_a_device_are_the_same(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU stands in for the GPU: what is moved does not need the host's memory any more."""
    items = [item(number) for number in range(3)]
    cached = stored_to_train_on(tmp_path, items)
    expected = samples(items, cached)
    sizes = [sum(s.rows for s in training_spans(items, SAMPLING, d, "video")) for d in BOTH]
    for spare, moved in ((0, True), (-8, False)):
        free = (sum(sizes) * WIDTH * 2 + spare) / cached_module.FREE_SHARE
        monkeypatch.setattr(cached_module, "free_device_memory", lambda _, free=free: free)
        kept = held(cached, items, accelerator)
        assert all(hasattr(rows, "memory") != moved for rows in kept.held)
        for ours, theirs in zip(samples(items, kept), expected, strict=True):
            assert all(map(torch.equal, ours, theirs))
