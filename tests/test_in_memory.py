"""Features to train on, held decoded: the same samples, and nothing is read again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
from extract.settings.sampling import Direction, SamplingConfig, SpanKind
from train.data import cached as cached_module
from train.data import in_memory
from train.data.cached import CachedStreams, hold_features, sample_inputs, training_spans
from train.data.in_memory import HeldRows, free_memory
from train.data.videos import VideoItem

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
    folder: Path, items: Sequence[VideoItem], kind: SpanKind, dtype: Dtype = "float16"
) -> CachedStreams:
    """Write features of both directions and return where they are."""
    store = Store.open(folder, "a")
    places = tuple(Cached(store, "features", digit * 32, dtype) for digit in "12")
    with store.writer() as writer:
        for place, direction in zip(places, BOTH, strict=True):
            for span in training_spans(items, SAMPLING, direction, kind):
                rows = torch.randn(span.rows, WIDTH).to(DTYPES[dtype])
                writer.write(place.address(span), rows)
    store.refresh()
    return CachedStreams(places, trained_on=kind)


def samples(items: Sequence[VideoItem], cached: CachedStreams) -> list[tuple[Tensor, ...]]:
    """Return the inputs of three epochs."""
    return [
        sample_inputs(np.random.default_rng((epoch, n)), video, SAMPLING, BOTH, cached)[1]
        for epoch in range(3)
        for n, video in enumerate(items)
    ]


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
    cached = stored(tmp_path, items, kind, dtype)
    expected = samples(items, cached)
    held = hold_features(cached, items, SAMPLING, BOTH, accelerator)
    (line,) = capsys.readouterr().out.splitlines()
    assert "held decoded in memory" in line
    monkeypatch.setattr(Store, "_read", None)  # the store is not asked again
    for ours, theirs in zip(samples(items, held), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float32 and torch.equal(one, other)
            one += 1  # what is drawn is no part of what is held
    assert all(
        torch.equal(one, other)
        for ours, theirs in zip(samples(items, held), expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


def test_what_does_not_fit_is_read_window_by_window(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = [item(number) for number in range(3)]
    cached = stored(tmp_path, items, "video")
    spans = [s for d in BOTH for s in training_spans(items, SAMPLING, d, "video")]
    needed = sum(span.rows for span in spans) * WIDTH * 2
    for processes in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))  # each has memory of its own
        for spare, fits in ((0, True), (-8, False)):
            free = (needed * processes + spare) / cached_module.FREE_SHARE
            monkeypatch.setattr(cached_module, "free_memory", lambda free=free: free)
            held = hold_features(cached, items, SAMPLING, BOTH, accelerator)
            assert bool(held.held) == fits
            (line,) = capsys.readouterr().out.splitlines()
            assert ("window by window" in line) != fits
    monkeypatch.setattr(cached_module, "free_memory", lambda: 0)  # nobody can say
    assert hold_features(cached, items, SAMPLING, BOTH, accelerator) is cached


def test_blocks_and_videos_without_actions_are_not_held(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    cached = stored(tmp_path, [item(0)], "video")
    blocks = replace(cached, places=tuple(replace(place, cut=3) for place in cached.places))
    assert hold_features(blocks, [item(0)], SAMPLING, BOTH, accelerator) is blocks
    nothing = replace(item(0), segments=np.zeros((0, 2)))
    assert hold_features(cached, [nothing], SAMPLING, BOTH, accelerator) is cached


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
    cached = stored(tmp_path, items, "video")
    (rows, _) = hold_features(cached, items, SAMPLING, BOTH, accelerator).held
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
    cached = stored(tmp_path, items, "video")
    expected = samples(items, cached)
    sizes = [sum(s.rows for s in training_spans(items, SAMPLING, d, "video")) for d in BOTH]
    for spare, moved in ((0, True), (-8, False)):
        free = (sum(sizes) * WIDTH * 2 + spare) / cached_module.FREE_SHARE
        monkeypatch.setattr(cached_module, "free_device_memory", lambda _, free=free: free)
        held = hold_features(cached, items, SAMPLING, BOTH, accelerator)
        assert all(hasattr(rows, "memory") != moved for rows in held.held)
        for ours, theirs in zip(samples(items, held), expected, strict=True):
            assert all(map(torch.equal, ours, theirs))
