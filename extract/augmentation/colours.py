"""Changes of brightness, contrast, saturation and hue, as torchvision's `ColorJitter` makes them.

They work on levels: values 0 to 255 without fractions, in float32, channels first [3, N, H, W], and
may overwrite what they are given. As in uint8, every change ends at whole levels, rounded down, and
at the bounds. The published recipes jitter as mmaction2 does: it rounds and clips once, after the
last change and before the hue's, draws the order once a run, and its hue of 0.1 moves OpenCV's 180
steps by up to 25, which is 0.14 of the circle.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

HIGHEST = 255.0
# Of red, green and blue, which torchvision takes for grey (ITU-R BT.601).
LUMA = 0.2989, 0.587, 0.114
# torchvision takes a float in [0, 1] for a level with this factor, rounded down.
ROUNDED_DOWN = (HIGHEST + 1 - 1e-3) / HIGHEST

Change = Callable[[Tensor], Tensor]
"""A change of levels with the numbers that were drawn for it; it can be sent to a process."""


def adjust_brightness(levels: Tensor, factor: float) -> Tensor:
    """Return levels times a factor."""
    return whole(levels.mul_(factor))


def adjust_contrast(levels: Tensor, factor: float) -> Tensor:
    """Return levels moved away from each frame's mean grey, or towards it below 1."""
    mean = _grey(levels).mean((-2, -1), keepdim=True)
    return whole(levels.mul_(factor).add_(mean, alpha=1 - factor))


def adjust_saturation(levels: Tensor, factor: float) -> Tensor:
    """Return levels moved away from each pixel's grey, or towards it below 1."""
    grey = _grey(levels)
    return whole(levels.mul_(factor).add_(grey, alpha=1 - factor))


def adjust_hue(levels: Tensor, turns: float) -> Tensor:
    """Return levels whose hue (of HSV) is moved by a share of the whole circle."""
    red, green, blue = levels.unbind(0)
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest
    # The hue in sixths of the circle: 0 is red, 2 green, 4 blue. The larger of two equals is the
    # first. Shares of 0 and 1 choose: masks of bits are ten times as slow on a CPU.
    of_red, of_green = (
        torch.ge(channel, highest, out=torch.empty_like(red)) for channel in (red, green)
    )
    ahead = torch.lerp(red - green, blue - red, of_green).lerp_(green - blue, of_red)
    centre = of_green.mul_(-2).add_(4).mul_(of_red.neg_().add_(1))
    hue = ahead.div_(chroma.clamp_min(1)).add_(centre).add_(6 * turns)
    hue.sub_(torch.mul(hue, 1 / 6).floor_(), alpha=6)
    # From the lowest to the highest level along two sixths, there for two, and back.
    for channel, (middle, sign, offset) in zip(
        levels, ((3.0, 1.0, -1.0), (2.0, -1.0, 2.0), (4.0, -1.0, 2.0)), strict=True
    ):
        share = torch.sub(hue, middle).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(lowest, share, chroma, out=channel)
    return levels.mul_(ROUNDED_DOWN).floor_()


ADJUSTMENTS = adjust_brightness, adjust_contrast, adjust_saturation


def _grey(levels: Tensor) -> Tensor:
    """Return whole levels of grey [N, H, W]."""
    red, green, blue = levels.unbind(0)
    of_red, of_green, of_blue = LUMA
    return red.mul(of_red).add_(green, alpha=of_green).add_(blue, alpha=of_blue).floor_()


def whole(values: Tensor) -> Tensor:
    """Return values as levels, in place: within the bounds, rounded down."""
    return values.clamp_(0, HIGHEST).floor_()


def draw_jitter(
    rng: np.random.Generator, strengths: tuple[float, float, float, float]
) -> list[Change]:
    """Draw changes of brightness, contrast, saturation and hue, and their order.

    Args:
        strengths: how far factors lie from 1 at most, and the hue's shift from 0.
    """
    *of_factors, of_hue = strengths
    factors = [rng.uniform(max(0.0, 1 - most), 1 + most) for most in of_factors]
    changes = [
        partial(adjust, factor=factor) for adjust, factor in zip(ADJUSTMENTS, factors, strict=True)
    ]
    changes.append(partial(adjust_hue, turns=rng.uniform(-of_hue, of_hue)))
    return [changes[place] for place in rng.permutation(len(changes))]
