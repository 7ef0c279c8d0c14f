"""Resizing of decoded frames to the backbone's input size, and the training augmentation.

One draw of an augmentation is applied to all frames of a window, so that objects stay where they
are. (Three of RandAugment's operations, auto contrast, equalise and contrast, depend on each
frame's own values, in the published recipe, too.)

A transform has a fixed part, which resizes every frame and whose result can be kept
(`extract/sampling/frame_cache.py`), and a random part after it, which is drawn for every window:
the crop and the flip. Both are cheap, and loader workers make them. What changes the pixels after
them is drawn with the window, too, and made on the device, for all of its frames at once.

Pictures and draws are those of torchvision's transforms, bit for bit; its import alone takes a
process longer than decoding some windows.
"""

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from extract.augmentation.colours import Change, draw_jitter
from extract.augmentation.rand_augment import draw_operations
from extract.settings.pixels import PixelConfig

Augmentation = tuple[Change, ...]
"""What changes a window's pixels after crop and flip, in order; empty where nothing does."""

AT_ONCE = {"cpu": 2**18}
"""Numbers that a kind of device changes at a time: a CPU few frames, which stay in its cache."""
AT_ONCE_ELSEWHERE = 2**26
RATIOS = 3 / 4, 4 / 3
"""Width over height that a random crop has at least and at most."""
TRIES = 10  # for a crop that lies within the frame


@dataclass(frozen=True)
class Shrink:
    """The fixed part of a transform: everything that decides a resized frame but the decoded one.

    Args:
        short_side: in pixels, smaller or larger than before.
        square: crop a square at the centre; otherwise the long side is kept.
        antialias: as in `PixelConfig`.
    """

    short_side: int
    square: bool
    antialias: bool = True


@dataclass(frozen=True)
class Transform:
    """The transform of a window's frames: first `shrink`, then the random part `drawn`."""

    shrink: Shrink
    drawn: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of all frames uint8 [N, 3, H, W], resized to a square of `size`.

    Args:
        scale: the part's least and largest share of the area.
        antialias: as in `PixelConfig`.
    """

    size: int
    scale: tuple[float, float]
    antialias: bool

    def __call__(self, video: Tensor) -> Tensor:
        top, left, height, width = self._draw(*video.shape[-2:])
        part = video[..., top : top + height, left : left + width]
        return resize(part, (self.size, self.size), self.antialias)

    def _draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the top, left, height and width of a part."""
        low, high = torch.tensor(RATIOS).log().tolist()
        for _ in range(TRIES):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            ratio = torch.empty(1).uniform_(low, high).exp().item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(height - h + 1, (1,)).item())
                return top, int(torch.randint(width - w + 1, (1,)).item()), h, w
        # The largest part in the middle whose shape is allowed.
        w = min(width, round(height * max(RATIOS)))
        h = min(height, round(width / min(RATIOS)))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class RandomFlip:
    """All frames [N, 3, H, W] mirrored, left to right, with some probability."""

    probability: float

    def __call__(self, video: Tensor) -> Tensor:
        return video if torch.rand(1) >= self.probability else video.flip(-1)


@dataclass(frozen=True)
class InOrder:
    """Random changes of frames, one after the other."""

    steps: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, video: Tensor) -> Tensor:
        for step in self.steps:
            video = step(video)
        return video


def evaluation_transform(config: PixelConfig) -> Transform:
    """Return the transform of tests: resize the short side to `size`, crop the centre."""
    return Transform(Shrink(config.size, True, config.antialias), InOrder(()))


def train_transform(config: PixelConfig) -> Transform:
    """Return the transform of training: crop and flip, as configured."""
    steps = list[Callable[[Tensor], Tensor]]()
    if config.random_crop is None:
        fixed = evaluation_transform(config).shrink
    else:
        fixed = Shrink(config.train_short_side, False, config.antialias)
        steps.append(RandomResizedCrop(config.size, config.random_crop, config.antialias))
    if config.flip:
        steps.append(RandomFlip(config.flip))
    return Transform(fixed, InOrder(tuple(steps)))


def shrink_frames(frames: NDArray[np.uint8], to: Shrink) -> NDArray[np.uint8]:
    """Return decoded frames uint8 [N, H, W, 3] resized to uint8 [N, h, w, 3]."""
    # In the decoder's layout, channels last, resizing is fastest.
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    height, width = video.shape[-2:]
    small = resize(video, _size_of(height, width, to.short_side), to.antialias)
    if to.square:
        top, left = (round((side - to.short_side) / 2) for side in small.shape[-2:])
        small = small[..., top : top + to.short_side, left : left + to.short_side]
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def _size_of(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the height and width of a picture whose short side is made `short_side`."""
    long_side = int(short_side * max(height, width) / min(height, width))
    return (long_side, short_side) if width <= height else (short_side, long_side)


def resize(video: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """Return frames uint8 [N, 3, H, W] resized to a height and width, between the nearest pixels.

    Args:
        antialias: as in `PixelConfig`.
    """
    if tuple(video.shape[-2:]) == size:
        return video
    as_bytes = video.is_cpu and _resizes_bytes()
    levels = video if as_bytes else video.float()
    small = F.interpolate(
        levels, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )
    return small if as_bytes else small.round_().to(torch.uint8)


def _resizes_bytes() -> bool:
    """Return whether this processor has a fast way for bytes, which elsewhere is a slow one."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return fast or platform.machine() in ("aarch64", "arm64")


def crop_frames(small: NDArray[np.uint8], transform: Transform, seed: int = 0) -> Tensor:
    """Return resized frames uint8 [N, h, w, 3], cropped and flipped: uint8 [3, N, size, size].

    The draw depends on the seed alone, so that a window may be cropped in parts.
    """
    video = torch.from_numpy(small).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed notes where it was called for every kind of device.
        torch.default_generator.manual_seed(seed)
        result: Tensor = transform.drawn(video)
    return result.transpose(0, 1).contiguous()


def transform_frames(transform: Transform, frames: NDArray[np.uint8], seed: int = 0) -> Tensor:
    """Return frames uint8 [N, H, W, 3] transformed to uint8 [3, N, size, size], reproducibly."""
    return crop_frames(shrink_frames(frames, transform.shrink), transform, seed)


def draw_augmentation(rng: np.random.Generator, config: PixelConfig) -> Augmentation:
    """Draw RandAugment and colour jitter for a window, as configured."""
    changes = draw_operations(rng, config.rand_augment)
    if config.colour_jitter is not None:
        changes += draw_jitter(rng, config.colour_jitter)
    return tuple(changes)


@torch.no_grad()
def augment(frames: Tensor, augmentation: Augmentation) -> Tensor:
    """Return frames uint8 [3, F, H, W] with their pixels changed, on their device.

    Nothing here makes the host wait for the device. Devices round differently: here and there a
    value differs by a level.
    """
    if not augmentation:
        return frames
    augmented = torch.empty_like(frames)
    at_once = AT_ONCE.get(frames.device.type, AT_ONCE_ELSEWHERE)
    count = max(at_once // frames[:, 0].numel(), 1)
    for part, result in zip(frames.split(count, 1), augmented.split(count, 1), strict=True):
        levels = part.float()
        for change in augmentation:
            levels = change(levels)
        result.copy_(levels)
    return augmented
