"""RandAugment as the published recipes have it: mmaction2's `ImgAug('default')`.

Some of fifteen operations, all at magnitude 9 of 10 (Cubuk et al., 2019; strengths from
EfficientNet's AutoAugment, which mmaction2 borrowed). Colours, contrast, brightness and sharpness
are only ever enhanced. torchvision's RandAugment counts 31 magnitudes, has other operations and
strengths, and is about a third as strong at 9.

All frames of a window get the same operations, in the order of the list. Signs are drawn for every
window; mmaction2 draws them once a run, with its configuration.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode, functional

LEVEL = 0.9  # magnitude 9 of 10
SHEAR = 17.19 * LEVEL  # degrees: a shear of 0.28
ROTATION = 30 * LEVEL  # degrees
SHIFT = 0.2 * LEVEL  # of the side
FACTOR = 1.8 * LEVEL + 0.1  # 1 is the picture as it is
BITS = int(4 * LEVEL)
SOLARISED_FROM = 256 * LEVEL
HOLE = 0.2 * LEVEL  # of the side
GREY = 128
Pair = tuple[float, float]


def shear_x(video: Tensor) -> Tensor:
    """Shear along the rows, about the centre."""
    return _affine(video, shear=(_signed(SHEAR), 0.0))


def shear_y(video: Tensor) -> Tensor:
    """Shear along the columns, about the centre."""
    return _affine(video, shear=(0.0, _signed(SHEAR)))


def translate_x(video: Tensor) -> Tensor:
    """Move the picture to one side."""
    return _affine(video, shift=(_signed(SHIFT * video.shape[-1]), 0.0))


def translate_y(video: Tensor) -> Tensor:
    """Move the picture up or down."""
    return _affine(video, shift=(0.0, _signed(SHIFT * video.shape[-2])))


def rotate(video: Tensor) -> Tensor:
    """Turn the picture about its centre."""
    return functional.rotate(video, _signed(ROTATION), InterpolationMode.BILINEAR)


def posterise(video: Tensor) -> Tensor:
    """Keep the highest bits of every value."""
    return functional.posterize(video, BITS)


def solarise(video: Tensor) -> Tensor:
    """Invert the brightest values."""
    return functional.solarize(video, SOLARISED_FROM)


def enhance_colour(video: Tensor) -> Tensor:
    """Move colours away from grey."""
    return functional.adjust_saturation(video, FACTOR)


def enhance_contrast(video: Tensor) -> Tensor:
    """Move values away from the frame's mean."""
    return functional.adjust_contrast(video, FACTOR)


def enhance_brightness(video: Tensor) -> Tensor:
    """Move values away from black."""
    return functional.adjust_brightness(video, FACTOR)


def enhance_sharpness(video: Tensor) -> Tensor:
    """Move values away from a smoothed picture's."""
    return functional.adjust_sharpness(video, FACTOR)


def auto_contrast(video: Tensor) -> Tensor:
    """Stretch each frame's channels to all values."""
    return functional.autocontrast(video)


def equalise(video: Tensor) -> Tensor:
    """Make each frame's histograms flat."""
    return functional.equalize(video)


def invert(video: Tensor) -> Tensor:
    """Return the negative."""
    return functional.invert(video)


def cut_out(video: Tensor) -> Tensor:
    """Cover a square with grey, centred anywhere in the picture."""
    height, width = video.shape[-2:]
    side = round(HOLE * min(height, width))
    shares = torch.rand(2).tolist()
    top, left = (int(c * n) - side // 2 for c, n in zip(shares, (height, width), strict=True))
    covered = video.clone()
    covered[..., max(top, 0) : top + side, max(left, 0) : left + side] = GREY
    return covered


OPERATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    posterise,
    solarise,
    enhance_colour,
    enhance_contrast,
    enhance_brightness,
    enhance_sharpness,
    auto_contrast,
    equalise,
    invert,
    cut_out,
)


class RandAugment(nn.Module):
    """A random choice of different operations for all frames uint8 [N, 3, H, W] of a window."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.operations = operations

    def forward(self, video: Tensor) -> Tensor:
        """Return the video after the drawn operations, applied in the order of the list."""
        for number in sorted(torch.randperm(len(OPERATIONS))[: self.operations].tolist()):
            video = OPERATIONS[number](video)
        return video


def _signed(strength: float) -> float:
    return strength if torch.rand(()) < 0.5 else -strength


def _affine(video: Tensor, shift: Pair = (0.0, 0.0), shear: Pair = (0.0, 0.0)) -> Tensor:
    """Shift by pixels, or shear by degrees about the centre; what comes into view is black."""
    bilinear = InterpolationMode.BILINEAR
    return functional.affine(video, 0.0, list(shift), 1.0, list(shear), bilinear)
