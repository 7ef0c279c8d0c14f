"""Views of a trimmed clip for recognition networks: which frames and which pixels.

In training one random view of a clip; in testing several clips along time and several crops along
the long side of each, as in the published protocols of Kinetics and Something-Something.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import horizontal_flip

from extract.sampling.transforms import Shrink, Transform
from extract.sampling.window_frames import window_frames
from extract.settings.pixels import CropConfig, ViewConfig
from extract.settings.sampling import Direction
from extract.video.reader import VideoReader


class Stretch(NamedTuple):
    """Consecutive frames of a video: the first one's number, how many, and how many a second."""

    first: int
    length: int
    fps: float


class Clip(NamedTuple):
    """Frames of a video, by number [F], not falling; frames may repeat."""

    frames: NDArray[np.int64]


def evaluation_clips(stretch: Stretch, config: ViewConfig) -> list[Clip]:
    """Return the clips of a test, in order: clip i of N begins i/N of the way to the last start.

    Of segments, clip i of N takes the frame that lies (i + 1)/N into each. A single clip lies in
    the middle.
    """
    shares = (np.arange(config.clips) + (config.method == "segments")) / config.clips
    if config.clips == 1:
        shares = np.array([0.5])
    if config.method == "interval":
        return [_at_intervals(stretch, share, config) for share in shares]
    return [_of_segments(stretch, np.full(config.frames, share)) for share in shares]


def training_clip(rng: np.random.Generator, stretch: Stretch, config: ViewConfig) -> Clip:
    """Draw a training clip."""
    if config.method == "interval":
        return _at_intervals(stretch, rng.uniform() if config.jitter else 0.5, config)
    shares = rng.uniform(size=config.frames) if config.jitter else np.full(config.frames, 0.5)
    return _of_segments(stretch, shares)


def training_view(
    reader: VideoReader, clip: Clip, config: CropConfig, flipped: bool, seed: int
) -> Tensor:
    """Return a training view uint8 [3, F, train_size, train_size], one draw for all its frames."""
    low, high = config.train_short_side
    short_side = int(np.random.default_rng(seed).integers(low, high + 1))
    shrink = Shrink(short_side, square=False, antialias=config.antialias)
    transform = Transform(shrink, v2.RandomCrop(config.train_size))
    (frames,) = window_frames(reader, [clip], transform, seed)
    view = torch.stack(frames, 1)
    return horizontal_flip(view) if flipped else view


def evaluation_views(
    reader: VideoReader, clips: list[Clip], config: CropConfig
) -> Iterator[Tensor]:
    """Yield test views uint8 [3, F, test_size, test_size]: all crops of a clip, then the next's."""
    shrink = Shrink(config.test_short_side, square=False, antialias=config.antialias)
    transform = Transform(shrink, v2.Identity())
    for frames in window_frames(reader, clips, transform):
        whole = torch.stack(frames, 1)
        for top, left in crop_corners(whole.shape[-2], whole.shape[-1], config):
            yield whole[..., top : top + config.test_size, left : left + config.test_size]


def crop_corners(height: int, width: int, config: CropConfig) -> list[tuple[int, int]]:
    """Return the upper left corners (top, left) of the crops of a resized frame."""
    margin = height - config.test_size, width - config.test_size
    middle = margin[0] // 2, margin[1] // 2
    if config.crops == 1:
        return [middle]
    steps = config.crops - 1
    along = [max(margin) * step // steps for step in range(config.crops)]
    if width >= height:
        return [(middle[0], left) for left in along]
    return [(top, middle[1]) for top in along]


def order_view(view: Tensor, direction: Direction) -> Tensor:
    """Return a view [3, F, H, W] in the order of a direction of time."""
    return view if direction == "forward" else view.flip(1)


def _at_intervals(stretch: Stretch, share: float, config: ViewConfig) -> Clip:
    """Return frames at an even distance, beginning at a share of the way to the last start."""
    span = config.frames * config.interval * stretch.fps / config.fps
    start = share * max(stretch.length - span, 0)
    positions = np.linspace(start, start + span - 1, config.frames)
    return Clip(stretch.first + np.clip(positions, 0, stretch.length - 1).astype(np.int64))


def _of_segments(stretch: Stretch, shares: NDArray[np.float64]) -> Clip:
    """Return the frame at a share of each of as many equal parts."""
    positions = (np.arange(len(shares)) + shares) * stretch.length / len(shares)
    return Clip(stretch.first + np.clip(positions, 0, stretch.length - 1).round().astype(np.int64))
