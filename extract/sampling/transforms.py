"""From decoded frames to the backbone's input size, with the training augmentation.

One draw of an augmentation holds for all frames of a window, so that objects stay where they are.
(Three of RandAugment's operations, auto contrast, equalise and contrast, look at each frame's own
values, in the published recipe too.)

A transform has a fixed part, which makes every frame small and can be done once and kept
(`extract/sampling/frame_cache.py`), and a drawn part behind it, which every window draws anew.
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
        antialias: average what a resized pixel covers. The published detectors (OpenTAD) were
            trained on frames that were resized without: a pixel comes from its two neighbours a
            side. Reproduce them with false; for data of one's own true keeps more of a picture.
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
    """The fixed part of a transform: all that a small frame depends on besides the decoded one.

    Args:
        short_side: in pixels, whatever it was before.
        square: cut to a square at the centre; otherwise the long side stays whole.
        antialias: as in `PixelConfig`.
    """

    short_side: int
    square: bool
    antialias: bool = True


@dataclass(frozen=True)
class Transform:
    """What happens to every frame of a window: first `shrink`, then `drawn`."""

    shrink: Shrink
    drawn: v2.Transform


def evaluation_transform(config: PixelConfig) -> Transform:
    """Short side to `size`, centre crop."""
    return Transform(Shrink(config.size, True, config.antialias), v2.Identity())


def train_transform(config: PixelConfig) -> Transform:
    """Crop, flip, RandAugment and colour jitter, as far as the config asks for them."""
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


def shrunk(frames: NDArray[np.uint8], to: Shrink) -> NDArray[np.uint8]:
    """Make decoded frames uint8 [N, H, W, 3] small: uint8 [N, h, w, 3]."""
    # Decoded layout, channels last: resizing is fastest there.
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = functional.resize(video, [to.short_side], antialias=to.antialias)
    if to.square:
        small = functional.center_crop(small, [to.short_side])
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def finished(small: NDArray[np.uint8], transform: Transform, seed: int = 0) -> Tensor:
    """Put small frames uint8 [N, h, w, 3] through what is drawn: uint8 [3, N, size, size].

    The draw depends on the seed alone: a window may come in parts.
    """
    video = torch.from_numpy(small).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result: Tensor = transform.drawn(video)
    return result.transpose(0, 1).contiguous()


def apply(transform: Transform, frames: NDArray[np.uint8], seed: int = 0) -> Tensor:
    """Transform frames uint8 [N, H, W, 3] into uint8 [3, N, size, size], reproducibly."""
    return finished(shrunk(frames, transform.shrink), transform, seed)
