"""Resizing of decoded frames to the backbone's input size, and the training augmentation.

One draw of an augmentation is applied to all frames of a window, so that objects stay where they
are. (Three of RandAugment's operations, auto contrast, equalise and contrast, depend on each
frame's own values, in the published recipe, too.)

A transform has a fixed part, which resizes every frame and whose result can be kept
(`extract/sampling/frame_cache.py`), and a random part after it, which is drawn for every window:
the crop and the flip. Both are cheap, and loader workers make them. What changes the pixels behind
them is drawn with the window, too, and made on the device, for all of its frames at once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from extract.augmentation.colours import Change, draw_jitter
from extract.augmentation.rand_augment import draw_operations
from extract.settings.pixels import PixelConfig

Augmentation = tuple[Change, ...]
"""What changes a window's pixels behind crop and flip, in order; empty where nothing does."""

AT_ONCE = {"cpu": 2**18}
"""Numbers that a kind of device changes at a time: a CPU few frames, which stay in its cache."""
AT_ONCE_ELSEWHERE = 2**26


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
    drawn: v2.Transform


def evaluation_transform(config: PixelConfig) -> Transform:
    """Return the transform of tests: resize the short side to `size`, crop the centre."""
    return Transform(Shrink(config.size, True, config.antialias), v2.Identity())


def train_transform(config: PixelConfig) -> Transform:
    """Return the transform of training: crop and flip, as configured."""
    steps: list[nn.Module] = [v2.Identity()]
    if config.random_crop is None:
        fixed = evaluation_transform(config).shrink
    else:
        fixed = Shrink(config.train_short_side, False, config.antialias)
        steps.append(
            v2.RandomResizedCrop(config.size, scale=config.random_crop, antialias=config.antialias),
        )
    if config.flip:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    return Transform(fixed, v2.Compose(steps))


def shrink_frames(frames: NDArray[np.uint8], to: Shrink) -> NDArray[np.uint8]:
    """Return decoded frames uint8 [N, H, W, 3] resized to uint8 [N, h, w, 3]."""
    # In the decoder's layout, channels last, resizing is fastest.
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = functional.resize(video, [to.short_side], antialias=to.antialias)
    if to.square:
        small = functional.center_crop(small, [to.short_side])
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def crop_frames(small: NDArray[np.uint8], transform: Transform, seed: int = 0) -> Tensor:
    """Return resized frames uint8 [N, h, w, 3], cropped and flipped: uint8 [3, N, size, size].

    The draw depends on the seed alone, so that a window may be cropped in parts.
    """
    video = torch.from_numpy(small).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
