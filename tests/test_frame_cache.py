"""Kept frames: the same samples to the bit, whatever becomes of files, disk or videos."""

import errno
import io
import os
import pickle
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from cache.code_digest import versions
from cache.store import Store
from configs.loader import load
from extract.activations.stored import Cached
from extract.demo import DemoConfig, write_dataset
from extract.identity.computing import LIBRARIES
from extract.identity.digest import video_digest
from extract.parallel.lookahead import start_fetch
from extract.sampling import frame_cache as module
from extract.sampling.frame_cache import RESERVE, FrameCache, kept_bytes
from extract.sampling.spans import Span
from extract.sampling.transforms import Shrink, evaluation_transform, train_transform
from extract.sampling.window_frames import resized_chunks
from extract.sampling.windows import random_window, sampled_frames, sliding_windows
from extract.settings.backbone import BackboneConfig, TrunkConfig
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import Direction, SamplingConfig
from extract.video.reader import CHUNK, VideoError, VideoReader
from tests.encodings import ENCODINGS, turn, write_numbered
from tests.marks import slow
from tests.test_bad_videos import SPOILERS, damage, vanish
from tests.test_disk import files_end_at
from tests.test_e2e import DEMO, QUICK, build, script, the_same_curve
from train.config import Experiment
from train.data.batch import Sample
from train.data.cached import evaluation_spans
from train.data.items import VideoItem
from train.data.truth import load_annotations
from train.data.video_files import probe_item, with_digest
from train.data.videos import load_items
from train.data.windows import (
    EvaluationWindows,
    TrainingWindows,
    WindowInputs,
    evaluation_loader,
)
from train.detector.setup import activations_of, open_frame_cache
from train.detector.sources import build_detector
from train.detector.training import DetectionTask
from train.modeling.config import HeadConfig

WINDOW = SamplingConfig(window_size=32, snippet_stride=2)
RESIZE = SamplingConfig("resize", window_size=32)
PIXELS = PixelConfig(size=32, train_short_side=40)
PLAIN = PixelConfig(32, 40, random_crop=None, flip=0.5, rand_augment=0, colour_jitter=None)
WIDE, SQUARE = Shrink(40, square=False), Shrink(32, square=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    sizes = DemoConfig(training=5, validation=1, test=2, shortest=5, longest=7)
    write_dataset(folder, sizes, processes=2)
    return folder


@pytest.fixture
def config(whole: Path, tmp_path: Path) -> Experiment:
    """An experiment on a copy of the videos, with a folder for their frames."""
    folder = Path(shutil.copytree(whole, tmp_path / "data"))
    (tmp_path / "frames").mkdir()
    demo = load(Experiment, DEMO)
    data = replace(
        demo.data,
        annotations=str(folder / "annotations.json"),
        videos=str(folder / "videos"),
        classes=str(folder / "classes.txt"),
        frame_cache=str(tmp_path / "frames"),
    )
    return replace(demo, data=data, sampling=WINDOW, pixels=PIXELS)


def loaded(config: Experiment, subset: str = "training") -> list[VideoItem]:
    """Three training videos with an action, or another subset."""
    items = load_items(config.data, load_annotations(config.data), subset)
    return [item for item in items if subset != "training" or len(item.segments)][:3]


def cache_of(config: Experiment, limit_gb: float | None = None) -> FrameCache:
    assert config.data.frame_cache is not None
    return FrameCache(Path(config.data.frame_cache), config.sampling, limit_gb)


def same(one: Sample, two: Sample) -> bool:
    parts = (one.inputs, two.inputs), (one.segments, two.segments)
    equal = all(
        torch.equal(a, b) for left, right in parts for a, b in zip(left, right, strict=True)
    )
    return equal and (one.video, one.problem) == (two.video, two.problem)


def small_files(cache: FrameCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


@given(
    st.integers(1, 400),
    st.sampled_from([(1, 1), (2, 1), (4, 1), (4, 2), (6, 2)]),
    st.integers(0, 2**32 - 1),
)
def test_any_window_finds_its_frames(frames: int, strides: tuple[int, int], seed: int) -> None:
    """The multiples of the stride, and for squeezed videos exactly what the window has."""
    stride, scale = strides
    config = SamplingConfig("window", 16, scale, stride, crop=(0.5, 1.0))
    kept = sampled_frames(frames, config).tolist()
    assert kept == list(range(0, frames, stride // scale))
    slid = {
        f
        for overlap in (0, 0.5)
        for w in sliding_windows(frames, overlap, config)
        for f in w.frames
    }
    assert slid == set(kept)
    drawn = random_window(np.random.default_rng(seed), frames, np.zeros((0, 2)), config)
    assert set(drawn.frames) <= set(kept)
    squeezed = replace(config, method="resize")
    (window,) = sliding_windows(frames, 0.0, squeezed)
    assert sampled_frames(frames, squeezed).tolist() == sorted(set(window.frames))


@pytest.mark.parametrize("sampling", [WINDOW, RESIZE], ids=lambda c: c.method)
@pytest.mark.parametrize("pixels", [slow(PIXELS), PLAIN], ids=["cropped", "whole"])
def test_training_samples_are_the_same_to_the_bit(
    config: Experiment, sampling: SamplingConfig, pixels: PixelConfig
) -> None:
    fusion = replace(config.fusion, method="average", partner="reversed")
    config = replace(config, sampling=sampling, pixels=pixels, fusion=fusion)
    assert config.directions == get_args(Direction)
    items = loaded(config)
    keys = [*product((0, 3), range(len(items)))]
    inputs = WindowInputs.of(config)
    expected = [TrainingWindows(items, inputs)[key] for key in keys]
    cache = cache_of(config)
    for _ in ("filled", "read", "read by another process"):
        kept = TrainingWindows(items, replace(inputs, frame_cache=cache))
        assert all(same(kept[key], want) for key, want in zip(keys, expected, strict=True))
        cache = pickle.loads(pickle.dumps(cache))
    assert len(small_files(cache)) == len(items)
    for item in items:  # it really was read
        vanish(item.path)
    assert all(same(kept[key], want) for key, want in zip(keys, expected, strict=True))


@pytest.mark.parametrize("sampling", [WINDOW, RESIZE], ids=lambda c: c.method)
@pytest.mark.parametrize("direction", get_args(Direction))
def test_evaluation_samples_are_the_same_to_the_bit(
    config: Experiment, sampling: SamplingConfig, direction: Direction
) -> None:
    config = replace(config, sampling=sampling, direction=direction)
    items = loaded(config, "test")
    inputs = WindowInputs.of(config)
    expected = list(EvaluationWindows(items, inputs, 0.5))
    cache = cache_of(config)
    for _ in ("filled", "read"):
        found = list(EvaluationWindows(items, replace(inputs, frame_cache=cache), 0.5))
        assert len(found) == len(expected) and all(map(same, found, expected))
    assert len(small_files(cache)) == len(items)


@pytest.mark.slow
def test_workers_share_the_folder(config: Experiment) -> None:
    items = loaded(config, "test")
    found = []
    for kept, workers in ((None, 0), (cache_of(config), 2), (cache_of(config), 0)):
        windows = EvaluationWindows(items, WindowInputs.of(config, frame_cache=kept), 0.5)
        batches = evaluation_loader(windows, config.evaluation.batch_size, workers)
        found.append(
            {
                (video, window.start): inputs
                for batch in batches
                for video, window, inputs in zip(
                    batch.videos, batch.windows, batch.inputs[0], strict=True
                )
            }
        )
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert all(torch.equal(found[0][k], others[k]) for k in found[0] for others in found[1:])


def test_files_are_what_the_first_step_makes_of_the_frames(tmp_path: Path) -> None:
    """Plain arrays, one per video and kind; computed here from all frames at once."""
    cache = FrameCache(tmp_path, SamplingConfig(window_size=32, snippet_stride=6, scale_factor=2))
    item = numbered(tmp_path / "videos", 100)
    frames = torch.from_numpy(VideoReader(item.path).frames(np.arange(0, 100, 3))).permute(
        0, 3, 1, 2
    )
    wide = v2.Resize(40, antialias=True)(frames)
    assert wide.shape == (34, 3, 40, 80)
    square = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32)])(frames)
    for transform, expected in (
        (train_transform(PIXELS), wide),
        (evaluation_transform(PIXELS), square),
        (train_transform(PLAIN), square),  # shares the file
    ):
        windows = sliding_windows(100, 0.0, cache.sampling)
        list(cache.frames_of(item.path, item.info, windows, transform))
        file = np.load(cache.file(item.info, transform.shrink), mmap_mode="r")
        assert isinstance(file, np.memmap) and file.dtype == np.uint8 and file.flags.c_contiguous
        assert torch.equal(torch.from_numpy(file.copy()), expected.permute(0, 2, 3, 1))
    assert len(list(tmp_path.glob("*"))) == 3  # with the folder of videos


def test_names_tell_apart_all_that_pixels_depend_on(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, WINDOW)
    video = numbered(tmp_path, 60).info
    names = [
        FrameCache(tmp_path, sampling).file(of, to)
        for sampling in (WINDOW, RESIZE, replace(WINDOW, snippet_stride=3))
        for of in (video, replace(video, digest="0" * 64))
        for to in (WIDE, SQUARE, Shrink(40, square=True), replace(WIDE, antialias=False))
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9a-f]{32}\.npy", name.name) for name in names)
    # What is drawn, where windows lie and what the file is called do not matter.
    longer = replace(WINDOW, window_size=64, validation_overlap=0.0)
    renamed = replace(video, name="another")
    assert FrameCache(tmp_path, longer).file(renamed, WIDE) == cache.file(video, WIDE) == names[0]


def numbered(folder: Path, count: int) -> VideoItem:
    """A video of 128 × 64 pixels as an item with a truth and its identity."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{count}.mp4"
    write_numbered(path, count)
    return replace(with_digest(probe_item(path)), segments=np.array([[1.0, 9.0]]))


def read(cache: FrameCache, item: VideoItem) -> Tensor:
    """All frames of a video in windows, as evaluation has them."""
    windows = sliding_windows(item.frames, 0.0, cache.sampling)
    found = cache.frames_of(item.path, item.info, windows, evaluation_transform(PIXELS))
    return torch.stack([frame for frames in found for frame in frames])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoItem, Tensor, bytes]:
    """A video, its small frames, and the bytes of the file that keeps them."""
    folder = tmp_path_factory.mktemp("clip")
    item, cache = numbered(folder / "videos", 64), FrameCache(folder, WINDOW)
    expected = read(cache, item)
    return item, expected, cache.file(item.info, SQUARE).read_bytes()


def as_file(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, frames=np.zeros((32, 32, 32, 3), np.uint8))
    return file.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"no array",
    "archive": as_archive(),
    "pickled": as_file(np.array([None, {}])),
    "other numbers": as_file(np.zeros((32, 32, 32, 3), np.int8)),
    "too few frames": as_file(np.zeros((31, 32, 32, 3), np.uint8)),
    "no square": as_file(np.zeros((32, 32, 40, 3), np.uint8)),
    "another side": as_file(np.zeros((32, 40, 40, 3), np.uint8)),
    "one channel": as_file(np.zeros((32, 32, 32, 1), np.uint8)),
    "flat": as_file(np.zeros(32 * 32 * 32 * 3, np.uint8)),
    "other order": as_file(np.asfortranarray(np.zeros((32, 32, 32, 3), np.uint8))),
}


@pytest.mark.parametrize("content", [*FOREIGN, "truncated", "too long", "without checksums"])
def test_what_is_no_such_file_is_reported_once_and_made_anew(
    clip: tuple[VideoItem, Tensor, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
) -> None:
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW)
    file = cache.file(item.info, SQUARE)
    changed = {"truncated": good[:-1], "too long": good + b"\0"}
    changed["without checksums"] = good[: 128 + expected.numel()]  # as versions before wrote it
    file.write_bytes((changed | FOREIGN)[content])
    for _ in range(2):
        assert torch.equal(read(cache, item), expected)
    assert file.read_bytes() == good and small_files(cache) == [file]
    printed = capsys.readouterr().out
    assert printed.startswith(f"warning: {tmp_path}: 1 file of frames was damaged")
    assert file.name in printed and printed.count("\n") == 1


@settings(max_examples=60, deadline=None)
@given(
    place=st.integers(0, 127),
    put=st.binary(min_size=1, max_size=16),
    end=st.one_of(st.none(), st.integers(0, 200)),
)
def test_headers_of_any_bytes_are_met(
    clip: tuple[VideoItem, Tensor, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    place: int,
    put: bytes,
    end: int | None,
) -> None:
    """Whatever the header comes to say, frames are right: numpy's header here has 128 bytes."""
    item, expected, good = clip
    header = bytearray(good[:128])
    header[place : place + len(put)] = put[: 128 - place]
    folder = tmp_path_factory.mktemp("fuzz")
    cache = FrameCache(folder, WINDOW)
    cache.file(item.info, SQUARE).write_bytes((bytes(header) + good[128:])[:end])
    assert torch.equal(read(cache, item), expected)
    shutil.rmtree(folder)


@settings(max_examples=150, deadline=None)
@given(bits=st.lists(st.integers(0, 2**31), min_size=1, max_size=3))
def test_flipped_bits_anywhere_never_reach_a_sample(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path_factory: pytest.TempPathFactory, bits: list[int]
) -> None:
    """In header, pixels and index alike; the file is mended."""
    item, expected, good = clip
    content = bytearray(good)
    for bit in bits:
        content[bit // 8 % len(content)] ^= 1 << bit % 8
    folder = tmp_path_factory.mktemp("flipped")
    cache = FrameCache(folder, WINDOW)
    file = cache.file(item.info, SQUARE)
    file.write_bytes(content)
    assert torch.equal(read(cache, item), expected) and file.read_bytes() == good
    shutil.rmtree(folder)


def test_every_byte_of_header_and_index_is_checked(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path
) -> None:
    """Opening the file is enough to notice: no frame need be read."""
    item, expected, good = clip
    file = FrameCache(tmp_path, WINDOW).file(item.info, SQUARE)
    pixels = range(128, 128 + expected.numel())
    file.write_bytes(good)
    module._open_frames(file, len(expected), SQUARE).file.close()
    for place in {*range(len(good))} - {*pixels}:
        file.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(module._UnusableError):
            module._open_frames(file, len(expected), SQUARE)


@pytest.mark.slow
def test_files_that_end_anywhere_are_made_anew(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path
) -> None:
    item, expected, good = clip
    for end in (
        *range(0, 200, 9),
        *range(200, len(good), 4001),
        *range(len(good) - 160, len(good)),
    ):
        cache = FrameCache(tmp_path, WINDOW)
        cache.file(item.info, SQUARE).write_bytes(good[:end])
        assert torch.equal(read(cache, item), expected)


@pytest.mark.parametrize("how", ["flipped", "cut", "removed"])
def test_damage_that_comes_while_a_file_is_read(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, how: str
) -> None:
    """Frames that were given out before stay right, and so are those that follow."""
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW)
    file = cache.file(item.info, SQUARE)
    file.write_bytes(good)
    windows = sliding_windows(item.frames, 0.0, replace(WINDOW, window_size=16))
    found = cache.frames_of(item.path, item.info, windows, evaluation_transform(PIXELS))
    frames = next(found)
    if how == "removed":
        file.unlink()
    else:
        with file.open("r+b") as opened:
            opened.truncate(len(good) // 2) if how == "cut" else opened.seek(len(good) // 2)
            opened.write(bytes(1000))
    frames += [frame for window in found for frame in window]
    assert torch.equal(torch.stack(frames), expected)
    assert torch.equal(read(cache, item), expected) and file.read_bytes() == good


def test_a_file_under_the_name_of_another_is_noticed(tmp_path: Path) -> None:
    """As a file system that was repaired may leave it."""
    (folder := tmp_path / "frames").mkdir()
    one, other = numbered(tmp_path / "videos", 64), numbered(tmp_path / "others", 63)
    cache, expected = FrameCache(folder, WINDOW), []
    for item in (one, other):
        expected.append(read(cache, item))
    shutil.copy(cache.file(one.info, SQUARE), cache.file(other.info, SQUARE))
    assert torch.equal(read(cache, other), expected[1])


@pytest.mark.parametrize("changed", ["av", "decord", "torch", "torchcodec", "code"])
def test_frames_of_other_code_or_libraries_are_made_anew(
    clip: tuple[VideoItem, Tensor, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    changed: str,
) -> None:
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW)
    cache.file(item.info, SQUARE).write_bytes(good)
    assert torch.equal(read(cache, item), expected)
    assert cache.file(item.info, SQUARE).read_bytes() == good
    request.addfinalizer(module._made_by.cache_clear)
    module._made_by.cache_clear()
    if changed == "code":

        def chunks(self: VideoReader, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
            yield from original(self, rising)

        original = VideoReader.chunks
        monkeypatch.setattr(VideoReader, "chunks", chunks)
    else:
        found = versions(LIBRARIES)
        assert changed in found
        monkeypatch.setattr(module, "versions", lambda _: found | {changed: "0.1"})
    assert torch.equal(read(cache, item), expected)
    assert cache.file(item.info, SQUARE).read_bytes()[:-4] == good[:-4]
    assert cache.file(item.info, SQUARE).read_bytes() != good


@pytest.mark.parametrize("part", ["index", "pixels"])
def test_damage_in_a_folder_that_cannot_be_written(
    clip: tuple[VideoItem, Tensor, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
) -> None:
    """It is decoded instead, and reported once."""
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW)
    file = cache.file(item.info, SQUARE)
    at = len(good) - 1 if part == "index" else len(good) // 2
    file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(3):
        assert torch.equal(read(cache, item), expected)
    printed = capsys.readouterr().out
    assert "1 file of frames was damaged" in printed and "Permission denied" in printed
    monkeypatch.undo()
    assert small_files(cache) == [file] and printed.count("\n") == 2


def test_a_disk_that_damages_everything_is_given_up(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is made again once by a process, not for every window."""
    item, expected, _ = clip
    written = 0
    write = FrameCache._write

    def damaging(self: FrameCache, aside: Path, *rest: Any) -> bool:
        nonlocal written
        written += 1
        done = write(self, aside, *rest)
        with aside.open("r+b") as file:
            file.seek(1000)
            file.write(b"\1\2\3")
        return done

    monkeypatch.setattr(FrameCache, "_write", damaging)
    cache = FrameCache(tmp_path, WINDOW)
    for _ in range(4):
        assert torch.equal(read(cache, item), expected)
    assert written == 2 and not small_files(cache)


def test_damaged_files_are_counted_in_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a process and its loader workers together."""
    cache = FrameCache(tmp_path, WINDOW)
    for number in range(40):
        file = tmp_path / f"{number}.npy"
        file.write_bytes(b"damaged")
        cache._discard(file, module._UnusableError(file.stat()))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "32 files of frames were damaged" in lines[-1]
    assert not small_files(cache)


def test_validation_stores_no_features_of_damaged_frames(
    config: Experiment, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()

    def counted(tensor: Tensor) -> Callable[[], Tensor]:
        seen.append("fetch")
        fetch = start_fetch(tensor)

        def wait() -> Tensor:
            seen.append("wait")
            return fetch()

        return wait

    monkeypatch.setattr("train.detector.training.start_fetch", counted)
    small = BackboneConfig(TrunkConfig(32, 2, 2, image_size=32))
    config = replace(config, backbone=small, head=HeadConfig(width=16, heads=2, levels=3))
    config = replace(config, training=replace(config.training, workers=0))
    config = replace(config, evaluation=replace(config.evaluation, batch_size=1))
    items, cache = loaded(config, "test"), cache_of(config)
    torch.manual_seed(0)
    detector = build_detector(config, load_annotations(config.data).classes).eval()
    (spans,) = (
        evaluation_spans(items, config.sampling.validation_overlap, config.sampling, direction)
        for direction in config.directions
    )
    stored = []
    for name in ("whole", "damaged"):
        for file in small_files(cache):  # the second time
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 128
            file.write_bytes(content)
        with Store.open(tmp_path / name, "a") as store:
            activations = activations_of(detector, store, ["weights.pt"])
            task = DetectionTask(
                detector,
                loaded(config),
                items,
                accelerator,
                activations=activations,
                frame_cache=cache,
            )
            task.validate()
            task.close()
            store.refresh()
            place = activations[0].cached_cuts()["features"]
            stored.append([place.read(span) for span in spans])
    assert len(small_files(cache)) == len(items) == int(cache._damaged)
    assert all(map(torch.equal, *stored))
    # The host waits for a batch when a GPU has the next one, and once for the last.
    later = ["fetch", "wait"] * (len(spans) - 1)
    assert later and seen == 2 * ["fetch", *later, "wait"]


def test_validation_goes_on_without_a_store_that_is_lost(
    config: Experiment, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = BackboneConfig(TrunkConfig(32, 2, 2, image_size=32))
    config = replace(config, backbone=small, head=HeadConfig(width=16, heads=2, levels=3))
    config = replace(config, training=replace(config.training, workers=0))
    detector = build_detector(config, load_annotations(config.data).classes).eval()

    def lost(place: Cached, span: Span) -> bool:
        raise OSError("the store is gone")

    monkeypatch.setattr(Cached, "contains", lost)
    with Store.open(tmp_path / "store", "a") as store:
        of = activations_of(detector, store, ["weights.pt"])
        items = loaded(config), loaded(config, "test")
        task = DetectionTask(detector, *items, accelerator, activations=of)
        task.validate()
        assert not task.activations


@pytest.mark.slow
def test_loader_workers_notice_damage(config: Experiment) -> None:
    """Every frame of every window that workers give out is right; they share one count."""
    items, cache = loaded(config, "test"), cache_of(config)

    def windows(kept: FrameCache | None) -> EvaluationWindows:
        return EvaluationWindows(items, WindowInputs.of(config, frame_cache=kept), 0.5)

    expected = list(windows(cache))
    damaged = small_files(cache)
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    batches = evaluation_loader(windows(cache), 1, 2)
    found = {(batch.videos[0], batch.windows[0].start): batch.inputs[0][0] for batch in batches}
    assert len(found) == len(expected) > len(damaged) > 1
    for sample in expected:
        assert torch.equal(found[sample.video, sample.window.start], sample.inputs[0])
    assert len(damaged) <= int(cache._damaged) <= 2 * len(damaged)


def test_two_writers_at_once_are_harmless(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path
) -> None:
    item, expected, good = clip
    meet, found = threading.Barrier(3), list[Tensor]()

    def work() -> None:
        cache = FrameCache(tmp_path, WINDOW)
        meet.wait()
        found.append(read(cache, item))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.equal(each, expected) for each in found)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == good


def test_leftovers_are_removed_and_nothing_else(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path
) -> None:
    item = clip[0]
    cache = FrameCache(tmp_path, WINDOW)
    name = cache.file(item.info, SQUARE).stem
    names = f"{name}.0123abcd.part", f"{name}.4567abcd.part", "film.part", f"{name}.npy"
    for file in names:
        (tmp_path / file).touch()
    long_ago = time.time() - 2 * module.ABANDONED_S
    for file in names[1:]:
        os.utime(tmp_path / file, (long_ago, long_ago))
    cache.tidy()
    assert {path.name for path in tmp_path.iterdir()} == {*names} - {names[1]}


@pytest.mark.parametrize("bound", ["limit", "disk"])
def test_what_has_no_room_is_decoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bound: str,
) -> None:
    """Room for one of three files: whoever comes first stays."""
    items = [numbered(tmp_path / "videos", count) for count in (64, 66, 68)]
    expected = [read(FrameCache(tmp_path / "nowhere", WINDOW), item) for item in items]
    (folder := tmp_path / "frames").mkdir()
    bytes_each = 34 * 32 * 32 * 3 + 128 + 4 * (34 + 3)
    cache = FrameCache(folder, WINDOW, 1.9 * bytes_each / 1e9 if bound == "limit" else None)
    if bound == "disk":
        monkeypatch.setattr(module, "RESERVE", 10**9)

        def usage(_: object) -> tuple[int, int, int]:
            used = sum(path.stat().st_size for path in folder.iterdir())
            return 20 * 10**9, 0, 10**9 + int(1.9 * bytes_each) - used

        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(*usage(path))
        )
    for _ in range(2):
        for item, want in zip(items, expected, strict=True):
            assert torch.equal(read(cache, item), want)
    assert small_files(cache) == [cache.file(items[0].info, SQUARE)]
    printed = capsys.readouterr().out
    assert (
        "No such file" in printed and printed.count("\n") == 3
    )  # of the folder that is nowhere alone


@pytest.mark.parametrize(
    ("total_gb", "free_gb", "room_gb"), [(60, 12, 9), (60, 2, -1), (4000, 30, 10)]
)
def test_small_disks_keep_frames_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total_gb: int, free_gb: int, room_gb: int
) -> None:
    """A twentieth of a disk stays free, at most 20 GB."""
    monkeypatch.setattr(module, "RESERVE", RESERVE)
    usage = shutil._ntuple_diskusage(total_gb * 10**9, 0, free_gb * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    cache = FrameCache(tmp_path, WINDOW)
    assert cache.room() == room_gb * 10**9
    reserve_gb = free_gb - room_gb
    assert f"of which {reserve_gb:.1f} GB stay free" in cache.forecast([])


def test_a_disk_that_fills_up_costs_nothing(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW)
    for size in (0, 100, len(good) - 1):  # real writes fail
        with files_end_at(size):
            for _ in range(2):
                assert torch.equal(read(cache, item), expected)
        assert not small_files(cache)
    printed = capsys.readouterr().out
    assert printed == (
        f"warning: {tmp_path}: {os.strerror(errno.EFBIG)}; videos whose frames cannot be kept "
        "there are decoded in every epoch\n"
    )
    read(cache, item)
    assert not small_files(cache)  # given up by this process
    assert torch.equal(read(FrameCache(tmp_path, WINDOW), item), expected)
    assert len(small_files(cache)) == 1


def test_a_disk_that_fills_up_in_the_middle_of_a_file(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may promise room and then not have it."""
    item, expected, good = clip
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    with files_end_at(len(good) // 2):
        assert torch.equal(read(FrameCache(tmp_path, WINDOW), item), expected)
    assert not list(tmp_path.iterdir())


def test_others_may_take_the_room_at_the_same_moment(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW, 1.5 * len(good) / 1e9)
    allocate = os.posix_fallocate

    def together(*arguments: int) -> None:
        (tmp_path / "other.part").write_bytes(bytes(len(good)))
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", together)
    assert torch.equal(read(cache, item), expected)
    assert [path.name for path in small_files(cache)] == ["other.part"]


def test_a_folder_of_others_is_read_where_it_cannot_be_written(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, expected, good = clip
    cache = FrameCache(tmp_path, WINDOW)
    cache.file(item.info, SQUARE).write_bytes(good)
    other = numbered(tmp_path / "videos", 66)
    whole = read(FrameCache(tmp_path / "nowhere", WINDOW), other)
    monkeypatch.setattr("builtins.open", refuse_writing(open))
    assert torch.equal(read(cache, item), expected) and torch.equal(read(cache, other), whole)


def refuse_writing(really: Any) -> Any:
    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if "w" in mode and str(file).endswith(".part"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return really(file, mode, *rest, **named)

    return opened


@pytest.mark.parametrize("cause", SPOILERS)
def test_bad_videos_are_bad_with_kept_frames_too(config: Experiment, cause: str) -> None:
    config = replace(config, data=replace(config.data, bad_videos="skip"))
    items = loaded(config)
    cache = cache_of(config)
    SPOILERS[cause](items[1].path)
    decoded = WindowInputs.of(config)
    from_cache = replace(decoded, frame_cache=cache)
    plain, kept = TrainingWindows(items, decoded), TrainingWindows(items, from_cache)
    samples = [(plain[key], kept[key]) for key in product(range(4), range(3))]
    assert all(same(*pair) for pair in samples)
    assert any(pair[1].problem for pair in samples)
    assert len(small_files(cache)) == 2
    strict = TrainingWindows(items, replace(from_cache, skip_bad=False))
    failed = next(epoch for epoch in range(4) if samples[3 * epoch + 1][1].problem)
    # What a file held is known here: damage is another content.
    with pytest.raises(VideoError, match=cause if cause == "does not exist" else "was replaced"):
        strict[failed, 1]
    found = list(EvaluationWindows(items, from_cache, 0.5))
    assert any(sample.problem for sample in found)
    assert all(map(same, found, EvaluationWindows(items, decoded, 0.5)))


def test_damage_costs_only_the_windows_that_meet_it(config: Experiment) -> None:
    """As without kept frames: other windows of the video are read, and no half of it is kept."""
    item = loaded(config)[0]
    config = replace(config, sampling=replace(WINDOW, window_size=16))
    windows = sliding_windows(item.frames, 0.0, config.sampling)
    transform = evaluation_transform(PIXELS)
    cache = cache_of(config)
    (whole,) = cache.frames_of(item.path, item.info, windows[:1], transform)
    shutil.rmtree(cache.folder)
    cache.folder.mkdir()
    damage(item.path)
    item = with_digest(item)
    (found,) = cache.frames_of(item.path, item.info, windows[:1], transform)
    assert torch.equal(torch.stack(found), torch.stack(whole))
    with pytest.raises(VideoError, match="damaged"):
        list(cache.frames_of(item.path, item.info, windows, transform))
    assert not small_files(cache)


def test_a_video_that_is_replaced_while_it_is_decoded_is_not_kept(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(clip[0].path, tmp_path / "video.mp4"))
    item = with_digest(probe_item(path))

    def replaced(*arguments: Any) -> Iterator[NDArray[np.uint8]]:
        yield from resized_chunks(*arguments)
        with path.open("ab") as file:
            file.write(bytes(8))

    monkeypatch.setattr(module, "resized_chunks", replaced)
    (folder := tmp_path / "frames").mkdir()
    with pytest.raises(VideoError, match="was replaced during the run: its content has changed"):
        read(FrameCache(folder, WINDOW), item)
    assert not list(folder.iterdir())


def test_no_frame_of_a_video_that_grows_while_a_window_is_decoded_is_given_out(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where frames cannot be kept, either."""
    path = Path(shutil.copy(clip[0].path, tmp_path / "video.mp4"))
    item, cache = with_digest(probe_item(path)), FrameCache(tmp_path, WINDOW)
    cache._given_up.add(cache.file(item.info, SQUARE))
    windows = sliding_windows(item.frames, 0.0, replace(WINDOW, window_size=16))

    def growing(*arguments: Any) -> Iterator[NDArray[np.uint8]]:
        chunks = resized_chunks(*arguments)
        yield next(chunks)
        with path.open("ab") as file:
            file.write(bytes(8))
        yield from chunks

    monkeypatch.setattr(module, "resized_chunks", growing)
    found = cache.frames_of(item.path, item.info, windows, evaluation_transform(PIXELS))
    assert torch.equal(torch.stack(next(found)), clip[1][:16])
    with pytest.raises(VideoError, match="was replaced during the run"):
        next(found)


def test_no_sample_of_a_video_that_grows_between_windows_is_given_out(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path
) -> None:
    """Without kept frames: validation stores features of what it decodes for good."""
    path = Path(shutil.copy(clip[0].path, tmp_path / "video.mp4"))
    item = with_digest(probe_item(path))
    inputs = WindowInputs(replace(WINDOW, window_size=16), PIXELS, ("forward",))
    windows = sliding_windows(item.frames, 0.0, inputs.sampling)
    found = inputs.decode(item, windows, evaluation_transform(PIXELS))
    assert torch.equal(next(found)[0].transpose(0, 1), clip[1][:16])
    with path.open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(VideoError, match="was replaced during the run"):
        next(found)


def test_a_video_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is, only a few chunks are held at a time."""
    item = numbered(tmp_path / "videos", 250)
    seen = list[weakref.ref[Any]]()
    most = 0

    def counted(*arguments: Any) -> Iterator[NDArray[np.uint8]]:
        nonlocal most
        for chunk in resized_chunks(*arguments):
            seen.append(weakref.ref(chunk))
            most = max(most, sum(ref() is not None for ref in seen))
            yield chunk
            del chunk

    monkeypatch.setattr(module, "resized_chunks", counted)
    read(FrameCache(tmp_path, WINDOW), item)
    assert len(seen) == -(-125 // CHUNK) and most <= 3


def test_pictures_that_change_their_size_are_not_kept(
    clip: tuple[VideoItem, Tensor, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, expected, _ = clip
    changing = iter([np.zeros((16, 32, 32 + n, 3), np.uint8) for n in range(2)])
    calls = iter([lambda *_: changing, resized_chunks])  # to make the file, and to read the window
    monkeypatch.setattr(module, "resized_chunks", lambda *of: next(calls)(*of))
    assert torch.equal(read(FrameCache(tmp_path, WINDOW), item), expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_forecast_is_what_files_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes count as terabytes where the line is read."""
    upright = numbered(tmp_path / "videos", 101)
    turned = tmp_path / "videos/turned.mp4"
    write_numbered(turned, 77, ENCODINGS["H.264"])
    turn(turned)
    sideways = with_digest(probe_item(turned))
    cache = FrameCache(tmp_path / "frames", WINDOW)
    cache.folder.mkdir()
    wanted = [(item.path, item.info, to) for item in (upright, sideways) for to in (WIDE, SQUARE)]
    wide, square = 40 * 80 * 3, 32 * 32 * 3
    counts = [51, 51, 39, 39]
    needed = [
        128 + count * (each + 4) + 12
        for count, each in zip(counts, (wide, square, wide, square), strict=True)
    ]
    asked = [(path, count, to) for count, (path, _, to) in zip(counts, wanted, strict=True)]
    assert [kept_bytes(*each) for each in asked] == needed
    free = 10**12
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))
    monkeypatch.setattr(module, "kept_bytes", lambda *each: needed[asked.index(each)] * 10**6)
    line = cache.forecast([*wanted, wanted[0]])
    assert line == (
        f"frame cache {cache.folder}: 4 videos need 1,141.8 GB, 0 B of it is there; the disk "
        "has 1,000.0 GB free, of which 0 B stay free; only 1,000.0 GB more fit: other videos are "
        "always decoded"
    )
    free = 2 * 10**12
    assert cache.forecast(wanted).endswith("2,000.0 GB free, of which 0 B stay free; the rest fits")
    cache.limit_gb = 5.0
    assert "data.frame_cache_gb is 5, the disk" in cache.forecast(wanted)
    assert "only 5.0 GB more fit" in cache.forecast(wanted)
    cache.limit_gb = None
    for item in (upright, sideways):
        for transform in (train_transform(PIXELS), evaluation_transform(PIXELS)):
            windows = sliding_windows(item.frames, 0.0, WINDOW)
            list(cache.frames_of(item.path, item.info, windows, transform))
    sizes = [cache.file(video, to).stat().st_size for _, video, to in wanted]
    assert sizes == needed
    line = cache.forecast(wanted)
    assert f"4 videos need {sum(needed) / 1e6:.1f} MB" in line and line.endswith(
        "; nothing is missing"
    )
    cache.file(upright.info, WIDE).write_bytes(b"damaged")
    line = cache.forecast(wanted)
    assert "; the rest fits; 1 file of frames was damaged" in line
    assert len(small_files(cache)) == 3


def test_a_video_that_cannot_be_asked_spoils_no_forecast(tmp_path: Path) -> None:
    item = numbered(tmp_path / "videos", 64)
    vanish(item.path)
    assert "1 videos need 0 B" in FrameCache(tmp_path, WINDOW).forecast(
        [(item.path, item.info, WIDE)]
    )


def test_digests_are_known_where_frames_are_kept(config: Experiment) -> None:
    for item in loaded(config):
        assert item.info.digest == video_digest(item.path)
    without = replace(config, data=replace(config.data, frame_cache=None))
    assert all(item.identity is None for item in loaded(without))


def test_a_run_says_what_it_needs(
    config: Experiment, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training videos without an action are not trained on, and so not counted."""
    assert config.data.frame_cache is not None
    annotations = load_annotations(config.data)
    training, validation = (
        load_items(config.data, annotations, name) for name in ("training", "validation")
    )
    rest = config.sampling, config.pixels, training, validation, accelerator
    kept = open_frame_cache(config.data, *rest)
    learned = [item for item in training if len(item.segments)]
    assert len(learned) < len(training)
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"frame cache {config.data.frame_cache}: {len(learned) + len(validation)} videos need "
    )
    assert printed.count("\n") == 1 and kept is not None and kept.sampling == config.sampling
    assert open_frame_cache(replace(config.data, frame_cache=None), *rest) is None
    there = replace(config.data, frame_cache=config.data.annotations)
    with pytest.raises(ValueError, match=r"data\.frame_cache: cannot make the folder .*choose"):
        open_frame_cache(there, *rest)


@pytest.mark.slow
def test_a_run_goes_on_with_kept_frames_as_the_same_run(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    plain = load(Experiment, DEMO, [*data, *QUICK, f"--out={tmp_path / 'plain'}"])
    build(plain, accelerator).train()
    half = replace(plain.training, stop_epoch=2)
    build(replace(plain, out=str(tmp_path / "run"), training=half), accelerator).train()
    (folder := tmp_path / "frames").mkdir()
    arguments = [*data, *QUICK, "--out", tmp_path / "run", "--training.workers=1"]
    arguments += ["--data.frame_cache", folder]
    done = script("train/e2e.py", "--resume", "--config", DEMO, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"frame cache {folder}: " in done.stdout
    assert len(the_same_curve(tmp_path / "plain", tmp_path / "run")) > 4
    kept = sorted(folder.iterdir())
    assert kept or shutil.disk_usage(tmp_path).free < 21e9  # the reserve
    # What is read once is not kept.
    done = script("evaluate/run.py", "--checkpoint", tmp_path / "run/last.pt")
    assert done.returncode == 0, done.stderr
    assert sorted(folder.iterdir()) == kept
