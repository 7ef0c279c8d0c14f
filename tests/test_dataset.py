"""Samples: what they hold, in both directions, and that nothing but seed and epoch decides them."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from configs.loader import load
from extract.demo import DemoConfig, write_dataset
from extract.sampling.transforms import evaluation_transform, train_transform, transform_frames
from extract.sampling.window_frames import arrange
from extract.sampling.windows import sliding_windows
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import Direction
from tests.conftest import REPOSITORY
from train.config import DataConfig, Experiment
from train.data.batch import collate
from train.data.loading import EpochSampler, balanced_splits
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.data.windows import (
    EvaluationWindows,
    TrainingWindows,
    WindowInputs,
    evaluation_loader,
    training_loader,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("data")
    sizes = DemoConfig(training=4, validation=1, test=2, shortest=7, longest=9)
    write_dataset(folder, sizes, processes=2)
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    data = replace(
        demo.data,
        annotations=str(folder / "annotations.json"),
        videos=str(folder / "videos"),
        classes=str(folder / "classes.txt"),
    )
    return replace(
        demo, data=data, sampling=replace(demo.sampling, window_size=64, fps=None, snippet_stride=2)
    )


def training_windows(config: Experiment) -> TrainingWindows:
    items = load_items(config.data, load_annotations(config.data), "training")
    return TrainingWindows(items, WindowInputs.of(config))


@pytest.mark.slow
def test_samples_depend_on_seed_epoch_and_position_alone(config: Experiment) -> None:
    one, two = training_windows(config), training_windows(config)
    two[(7, 1)]  # another sample in between
    torch.manual_seed(99)
    for key in ((0, 0), (3, 2)):
        left, right = one[key], two[key]
        assert torch.equal(left.inputs[0], right.inputs[0])
        assert torch.equal(left.segments[0], right.segments[0])
    starts = {one[(epoch, 0)].window.start for epoch in range(6)}
    assert len(starts) > 1


def test_reversed_samples_mirror_forward_ones(config: Experiment) -> None:
    forward = training_windows(config)
    backward = training_windows(replace(config, direction="reversed"))
    for position in range(len(forward)):
        one, two = forward[(0, position)], backward[(0, position)]
        valid = len(one.window.frames)
        assert torch.equal(two.inputs[0][:, :valid], one.inputs[0][:, :valid].flip(1))
        assert torch.equal(two.mask, one.mask) and torch.equal(two.labels, one.labels)
        mirrored = one.window.reflection - one.segments[0].flip(1)
        assert torch.allclose(two.segments[0], mirrored)


def test_both_directions_are_one_sample(config: Experiment) -> None:
    """Two streams see the same window, each as it would alone."""
    alone = [training_windows(replace(config, direction=d)) for d in get_args(Direction)]
    fusion = replace(config.fusion, method="average", partner="reversed")
    both = training_windows(replace(config, fusion=fusion))
    for position in range(len(both)):
        sample = both[(0, position)]
        together = collate([sample])
        assert len(together.inputs) == 1  # frames travel once
        together = together.turned()
        assert together.turned() is together
        for stream, single in enumerate(dataset[(0, position)] for dataset in alone):
            assert torch.equal(together.inputs[stream][0], single.inputs[0])
            assert torch.equal(sample.segments[stream], single.segments[0])


@pytest.mark.parametrize("directions", [*product(get_args(Direction), repeat=2)], ids=str)
@pytest.mark.parametrize("valid", [1, 29, 64])
def test_streams_see_what_they_would_see_alone_also_where_a_window_is_padded(
    config: Experiment, directions: tuple[Direction, ...], valid: int
) -> None:
    window = sliding_windows(2 * valid, 0.0, config.sampling)[0]
    frames = torch.randint(256, (len(window.frames), 3, 4, 4), dtype=torch.uint8).unbind()
    source = WindowInputs(config.sampling, config.pixels, directions)
    item = training_windows(config).items[0]
    sample = source.sample(item, window, (arrange(frames, window, directions[0]),))
    inputs = collate([sample, sample]).turned().inputs
    for x, direction in zip(inputs, directions, strict=True):
        assert torch.equal(x[1], arrange(frames, window, direction))


def test_truth_survives_the_way_through_the_window(config: Experiment) -> None:
    """Mapped back to seconds, a window's truth is the annotated one, or ends where it does."""
    annotations = load_annotations(config.data)
    dataset = EvaluationWindows(
        load_items(config.data, annotations, "test"), WindowInputs.of(config), 0.5
    )
    found = 0
    items = {item.name: item for item in dataset.items}
    for sample in dataset:
        item, window = items[sample.video], sample.window
        borders = item.to_seconds(window.to_timeline(np.array([0, window.valid])))
        frame = item.duration_s / item.frames  # truth is rounded down to frames
        for segment, label in zip(sample.segments[0].numpy(), sample.labels, strict=True):
            start, end = item.to_seconds(window.to_timeline(segment))
            assert any(
                truth.label == annotations.classes[label]
                and (abs(truth.start_s - start) <= frame or start == pytest.approx(borders[0]))
                and (abs(truth.end_s - end) <= frame or end == pytest.approx(borders[1]))
                for truth in item.truth
            )
            found += 1
    assert found >= 5


@pytest.mark.slow
def test_loaders_give_the_same_data_with_any_number_of_workers(config: Experiment) -> None:
    batches = []
    for workers in (0, 2):
        dataset = training_windows(config)
        sampler = EpochSampler(len(dataset), 2, 0, 1, seed=0)
        loader = training_loader(dataset, sampler, workers)
        epochs = []
        for sampler.epoch in (0, 1):
            epochs += list(loader)
        batches.append(epochs)
    assert len(batches[0]) == 2 * sampler.steps > 2
    for left, right in zip(*batches, strict=True):
        assert left.videos == right.videos and torch.equal(left.inputs[0], right.inputs[0])
    half = sampler.steps
    assert [b.videos for b in batches[0][:half]] != [b.videos for b in batches[0][half:]]


def test_processes_share_one_global_order() -> None:
    single = list(EpochSampler(12, 4, 0, 1, seed=3))
    shares = [list(EpochSampler(12, 4, rank, 2, seed=3)) for rank in range(2)]
    together = [key for step in range(3) for share in shares for key in share[2 * step :][:2]]
    assert together == single
    assert sorted(position for _, position in single) == list(range(12))
    # Parts of an update, one after the other, hold the same keys together.
    for processes, accumulate in ((1, 2), (2, 2), (4, 1)):
        samplers = [
            EpochSampler(12, 4, rank, processes, 3, accumulate) for rank in range(processes)
        ]
        mine = [np.array(list(each)).reshape(3, -1, 2) for each in samplers]
        updates = np.concatenate(mine, 1)
        assert all(len(set(map(tuple, keys))) == 4 for keys in updates)
        for number, keys in enumerate(updates):
            assert {*map(tuple, keys)} == {*single[4 * number :][:4]}
    # Fewer videos than a global batch: go round again rather than stand still.
    assert len(list(EpochSampler(3, 4, 1, 2, seed=3))) == 2


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 0), (3, 0), *(pytest.param(n, 2, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_every_test_window_belongs_to_exactly_one_worker(
    config: Experiment, processes: int, workers: int
) -> None:
    config = replace(config, sampling=replace(config.sampling, window_size=32))
    items = load_items(config.data, load_annotations(config.data), "test")
    expected = [
        (item.name, window.start)
        for item in items
        for window in sliding_windows(item.frames, 0.5, config.sampling)
    ]
    seen: list[tuple[str, float]] = []
    for rank in range(processes):
        dataset = EvaluationWindows(items, WindowInputs.of(config), 0.5, rank, processes)
        share = []
        for batch in evaluation_loader(dataset, config.evaluation.batch_size, workers):
            share += [(v, w.start) for v, w in zip(batch.videos, batch.windows, strict=True)]
        assert len(share) == dataset.length(workers)
        mine, of_all = (Counter(name for name, _ in some) for some in (share, expected))
        whole = {name: number for name, number in mine.items() if number == of_all[name]}
        assert dataset.whole_videos(workers) == whole
        seen += share
    # Two workers take turns: only their own order is that of the videos.
    assert (sorted(seen) if workers else seen) == expected


def test_cuts_prefer_the_ends_of_videos() -> None:
    assert balanced_splits([10, 11, 9, 10], 4).tolist() == [0, 10, 21, 30, 40]
    assert balanced_splits([40], 4).tolist() == [0, 10, 20, 30, 40]  # one long video is shared
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(1, 40, rng.integers(1, 9)).tolist()
        parts = int(rng.integers(1, 12))
        cuts = balanced_splits(counts, parts)
        assert cuts[0] == 0 and cuts[-1] == sum(counts) and len(cuts) == parts + 1
        assert (np.diff(cuts) >= 0).all()
        assert np.diff(cuts).max() <= 1.5 * sum(counts) / parts + 1


def test_missing_and_broken_videos_are_listed_together(config: Experiment, tmp_path: Path) -> None:
    source = Path(config.data.videos)
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "training_000.mp4").symlink_to(source / "training_000.mp4")
    (folder / "training_001.mp4").write_bytes(b"")
    data = replace(config.data, videos=str(folder))
    with pytest.raises(ValueError) as caught:
        load_items(data, load_annotations(data), "training")
    message = str(caught.value)
    assert "3 of 4 videos of 'training'" in message
    assert "training_001.mp4: cannot be read as video: the file is empty" in message
    assert "training_002: no such file" in message and "training_000" not in message
    with pytest.raises(ValueError, match="there is no folder"):
        load_items(replace(data, videos="nowhere"), load_annotations(data), "training")


def annotated(tmp_path: Path, segment: list[float]) -> DataConfig:
    """A dataset of one 4-second video, whose duration only the file knows."""
    write_dataset(tmp_path / "demo", DemoConfig(1, 0, 0, 4, 4), processes=1)
    entry = {"segment": segment, "label": "wave"}
    database = {"training_000": {"subset": "all", "annotations": [entry]}}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    videos = str(tmp_path / "demo/videos")
    return DataConfig(str(tmp_path / "annotations.json"), videos, "all", None, "all")


def test_truth_is_checked_against_the_file_where_nothing_else_knows(tmp_path: Path) -> None:
    data = annotated(tmp_path, [1, 4.5])
    annotations = load_annotations(data)
    (item,) = load_items(data, annotations, "all")
    assert item.truth[0].end_s == item.duration_s and item.segments[0, 1] == item.frames
    assert annotations.warnings == {"segments clipped to the end of their video": 1}
    data = annotated(tmp_path / "frames", [100, 200])
    with pytest.raises(ValueError, match=r"training_000(?s:.)*Are the times in seconds\?"):
        load_items(data, load_annotations(data), "all")


def test_sidecar_files_are_no_videos_and_twins_are_refused(tmp_path: Path) -> None:
    data = annotated(tmp_path, [1, 2])
    folder = Path(data.videos)
    (folder / "training_000.srt").write_text("subtitles")
    (item,) = load_items(data, load_annotations(data), "all")
    assert item.path.suffix == ".mp4"
    (folder / "training_000.mkv").write_bytes(item.path.read_bytes())
    with pytest.raises(ValueError, match="share a name"):
        load_items(data, load_annotations(data), "all")


def test_missing_files_are_named_with_their_setting(tmp_path: Path) -> None:
    data = annotated(tmp_path, [1, 2])
    for name in ("annotations", "classes", "info_csv"):
        value = ("gone.csv",) if name == "info_csv" else "gone.csv"
        with pytest.raises(ValueError, match=rf"data\.{name}: there is no file.* gone\.csv"):
            load_annotations(replace(data, **{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "processes", "accumulate", "advice"),
    [
        (2, 4, 1, r"set it to 4, or start 1 or 2 processes"),
        (16, 3, 2, r"set it to 12 or 18, or start 1 or 2 or 4 or 8 processes"),
        (3, 1, 2, r"training\.accumulate 2; set it to 2 or 4 \("),
    ],
)
def test_a_global_batch_that_does_not_divide_is_refused(
    batch: int, processes: int, accumulate: int, advice: str
) -> None:
    with pytest.raises(ValueError, match=rf"training\.global_batch {batch} .*{advice}"):
        EpochSampler(50, batch, 0, processes, 0, accumulate)


def test_epochs_hold_whole_updates() -> None:
    """A gradient that crosses from one epoch to the next could not be resumed."""
    assert len(list(EpochSampler(50, 4, 0, 1, seed=0, accumulate=4))) == 48
    assert len(list(EpochSampler(3, 4, 0, 1, seed=0, accumulate=4))) == 4


def striped(count: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.repeat(rng.integers(0, 256, (1, 60, 80, 3), dtype=np.uint8), count, axis=0)


def test_augmentation_is_the_same_for_all_frames_and_repeatable() -> None:
    transform = train_transform(PixelConfig(size=32, train_short_side=40))
    one = transform_frames(transform, striped(), seed=1)
    assert one.shape == (3, 5, 32, 32) and one.dtype == torch.uint8
    assert torch.equal(one, one[:, :1].expand_as(one))
    assert torch.equal(one, transform_frames(transform, striped(), seed=1))
    assert not torch.equal(one, transform_frames(transform, striped(), seed=2))


def test_a_window_in_parts_gets_one_crop() -> None:
    """Crop and flip, bit for bit, down to a last part of one frame."""
    transform = train_transform(PixelConfig(size=32, train_short_side=40))
    frames = np.random.default_rng(1).integers(0, 256, (33, 60, 80, 3), dtype=np.uint8)
    for seed in range(40):
        whole = transform_frames(transform, frames, seed)
        parts = [transform_frames(transform, frames[at : at + 16], seed) for at in (0, 16, 32)]
        assert torch.equal(torch.cat(parts, 1), whole), seed


def test_decoded_layout_changes_no_pixel() -> None:
    """Channels last takes another path through the library than channels first."""
    transform = train_transform(PixelConfig(size=32, train_short_side=40))
    frames = np.random.default_rng(2).integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)
    for seed in range(20):
        torch.manual_seed(seed)
        small = v2.Resize(40, antialias=True)(
            torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        )
        expected = transform.drawn(small.contiguous())
        assert torch.equal(transform_frames(transform, frames, seed), expected.transpose(0, 1))


def by_neighbours(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames [N, H, W, 3] as OpenCV's bilinear does: from two neighbours, far or near."""
    result = frames.astype(np.float64)
    for axis, size in ((1, height), (2, width)):
        old = result.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.minimum(places.astype(int), old - 2)
        share = (places - low).reshape([-1 if a == axis else 1 for a in range(4)])
        result = result.take(low, axis) * (1 - share) + result.take(low + 1, axis) * share
    return result


def test_without_antialiasing_pixels_come_from_two_neighbours() -> None:
    """As OpenTAD's frames; the default is another picture."""
    config = PixelConfig(
        size=32, random_crop=None, flip=0.0, rand_augment=0, colour_jitter=None, antialias=False
    )
    frames = np.random.default_rng(0).integers(0, 256, (3, 200, 300, 3), dtype=np.uint8)
    expected = by_neighbours(frames, 32, 48)[:, :, 8:40].transpose(3, 0, 1, 2)
    for transform in (evaluation_transform(config), train_transform(config)):
        found = transform_frames(transform, frames).numpy().astype(int)
        assert np.abs(found - expected).max() <= 1
    smooth = transform_frames(evaluation_transform(replace(config, antialias=True)), frames).numpy()
    assert np.abs(smooth - expected).mean() > 20


def test_a_random_crop_is_resized_without_antialiasing_too() -> None:
    """Of noise with a deviation of 74, a mean of 5 × 5 pixels keeps 15, of 2 × 2 at least half."""
    plain = PixelConfig(
        32, 160, random_crop=(0.9, 1.0), flip=0.0, rand_augment=0, colour_jitter=None
    )
    noise = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    for seed in range(8):
        smooth, sharp = (
            transform_frames(train_transform(replace(plain, antialias=antialias)), noise, seed)
            .float()
            .std()
            for antialias in (True, False)
        )
        assert smooth < 25 < 37 < sharp


def test_flip_can_be_forbidden_where_classes_mirror_each_other() -> None:
    plain = PixelConfig(32, 40, random_crop=None, flip=0.0, rand_augment=0, colour_jitter=None)
    expected = transform_frames(evaluation_transform(plain), striped())
    for seed in range(8):
        assert torch.equal(transform_frames(train_transform(plain), striped(), seed), expected)
    flipping = train_transform(replace(plain, flip=0.5))
    results = [transform_frames(flipping, striped(), seed) for seed in range(8)]
    same = [torch.equal(r, expected) for r in results]
    mirrored = [torch.equal(r, expected.flip(3)) for r in results]
    assert any(same) and any(mirrored) and all(a or b for a, b in zip(same, mirrored, strict=True))


def test_evaluation_takes_the_centre_of_the_short_side() -> None:
    frames = np.zeros((1, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = 200
    square = transform_frames(evaluation_transform(PixelConfig(size=40)), frames)
    assert (square == 200).all()
