"""Resizing of decoded frames to the backbone's input size, and the training augmentation.

One draw of an augmentation is applied to all frames of a window, so that objects stay where they
are. (Three of RandAugment's operations, auto contrast, equalise and contrast, depend on each
frame's own values, in the published recipe, too.)

A transform has a fixed part, which resizes every frame and whose result can be kept
(`extract/sampling/frame_cache.py`), and a random part after it, which is drawn for every window.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from extract.sampling.rand_augment import RandAugment


@dataclass(frozen=True)
class PixelConfig:
    """Size of the input and strength of the augmentation.

    Args:
        size: side of the square input in pixels.
        train_short_side: the short side before random cropping; used only where it crops.
        random_crop: area range of the random resized crop; null takes the centre.
        flip: probability of a horizontal flip; 0 where classes mirror each other.
        rand_augment: operations of RandAugment (extract/sampling/rand_augment.py); 0 for none.
        colour_jitter: brightness, contrast, saturation, hue; null for none.
        antialias: average all pixels that a resized one covers. The published detectors (OpenTAD)
            were trained without: a pixel comes from two neighbours on each axis. Use false to
            reproduce them; for other data true keeps more detail.
    """

    size: int = 160
    train_short_side: int = 182
    random_crop: tuple[float, float] | None = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: int = 2
    colour_jitter: tuple[float, float, float, float] | None = (0.5, 0.5, 0.5, 0.1)
    antialias: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "train_short_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"pixels.{name} must be at least 1 pixel")
        if self.random_crop and self.train_short_side < self.size:
            raise ValueError(
                f"pixels.train_short_side {self.train_short_side} is below pixels.size {self.size}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"pixels.flip is a probability, not {self.flip}")
        if self.rand_augment < 0:
            raise ValueError("pixels.rand_augment is a number of operations, 0 for none")
        if self.random_crop and not 0 < self.random_crop[0] <= self.random_crop[1] <= 1:
            raise ValueError("pixels.random_crop must be two rising shares in (0, 1]")


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
    """Return the transform of training: crop, flip, RandAugment, colour jitter, as configured."""
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
    if config.rand_augment:
        steps.append(RandAugment(config.rand_augment))
    if config.colour_jitter is not None:
        steps.append(v2.ColorJitter(*config.colour_jitter))
    return Transform(fixed, v2.Compose(steps))


def shrink_frames(frames: NDArray[np.uint8], to: Shrink) -> NDArray[np.uint8]:
    """Return decoded frames uint8 [N, H, W, 3] resized to uint8 [N, h, w, 3]."""
    # In the decoder's layout, channels last, resizing is fastest.
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = functional.resize(video, [to.short_side], antialias=to.antialias)
    if to.square:
        small = functional.center_crop(small, [to.short_side])
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def augment_frames(small: NDArray[np.uint8], transform: Transform, seed: int = 0) -> Tensor:
    """Return resized frames uint8 [N, h, w, 3] augmented: uint8 [3, N, size, size].

    The draw depends on the seed alone, so that a window may be augmented in parts.
    """
    video = torch.from_numpy(small).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result: Tensor = transform.drawn(video)
    return result.transpose(0, 1).contiguous()


def transform_frames(transform: Transform, frames: NDArray[np.uint8], seed: int = 0) -> Tensor:
    """Return frames uint8 [N, H, W, 3] transformed to uint8 [3, N, size, size], reproducibly."""
    return augment_frames(shrink_frames(frames, transform.shrink), transform, seed)
