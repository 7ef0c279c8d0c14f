"""TAdaConvNeXtV2: a ConvNeXt over frames with temporally adaptive depthwise convolutions.

Huang et al., "Temporally-Adaptive Models for Efficient Video Understanding", 2023.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.layers.initial import trunc_normal_
from extract.settings.network import check_below_one
from extract.tada.conv import average_over_time, normalise_pixels, skip_clips

EPSILON = 1e-6  # of all norms


@dataclass(frozen=True)
class TAdaConvNeXtConfig:
    """Sizes of the network; by default those of TAdaConvNeXtV2-T.

    Args:
        classes: number of classes.
        depths, widths: blocks and channels of each stage. The heads of all routes are as wide as
            half the first stage, so that the widths must be multiples of the first one.
        drop_path: stochastic depth of the last block; earlier ones rise linearly from 0.
        dropout: before the classifier.
    """

    classes: int
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    drop_path: float = 0.2
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < len(self.depths) == len(self.widths) or min(self.classes, *self.depths) < 1:
            raise ValueError(
                "TAdaConvNeXtV2 needs a class, and a depth and a width for every stage, not "
                f"{self.classes} classes, depths {self.depths} and widths {self.widths}"
            )
        first = self.widths[0]
        if first < 2 or first % 2 or any(w < 1 or w % first for w in self.widths):
            raise ValueError(f"widths must be multiples of the first, even one, not {self.widths}")
        check_below_one("dropout", self.dropout)
        check_below_one("drop_path", self.drop_path)


class AttentiveRoute(nn.Module):
    """The routing function: factors of every frame's weights and biases; they begin as 1.

    Args:
        channels: of the frames; twice as many as inside.
        heads: of the attention over the frames of a clip.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        hidden, self.heads = channels // 2, heads
        self.down = nn.Conv1d(channels, hidden, 3, padding=1)
        self.norm = nn.LayerNorm(hidden, EPSILON)
        self.attention_norm = nn.LayerNorm(hidden, EPSILON)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.scales = nn.Conv1d(hidden, channels, 3, padding=1, bias=False)
        self.shifts = nn.Conv1d(hidden, channels, 3, padding=1, bias=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames averaged over space [B, C, T] to factors of weights and biases, as many."""
        x = quick_gelu(self.norm(self.down(frames).transpose(1, 2)))
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # The published scale is that of all channels, not of a head's.
        scale = x.shape[-1] ** -0.5
        mixed = F.scaled_dot_product_attention(query, key, value, scale=scale)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x.transpose(1, 2)
        return 1 + self.scales(x), 1 + self.shifts(x)


class ConvNeXtBlock(nn.Module):
    """Temporally adaptive depthwise 7×7, averaged over neighbours in time, and an MLP.

    Args:
        width: channels; `heads`: of the route.
        drop: probability that a clip skips the block in training.
    """

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.route = AttentiveRoute(width, heads)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.average_norm = nn.LayerNorm(width, EPSILON)
        self.grow = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map frames [B·T, C, H, W], T of them a clip, to frames of the same shape."""
        means = F.adaptive_avg_pool2d(x, 1).flatten(1).unflatten(0, (-1, frames))
        factors = self.route(means.transpose(1, 2))
        scales, shifts = (f.transpose(1, 2).flatten(0, 1)[..., None, None] for f in factors)
        weight, bias = self.depthwise.weight, self.depthwise.bias
        # A factor of a channel's weights scales the channel's output.
        y = F.conv2d(x, weight, None, padding=3, groups=len(weight)) * scales
        assert bias is not None
        y = y + shifts * bias.view(-1, 1, 1)
        averaged = average_over_time(y, frames).permute(0, 2, 3, 1)
        y = self.norm(y.permute(0, 2, 3, 1)) + self.average_norm(averaged)
        y = self.gamma * self.shrink(quick_gelu(self.grow(y)))
        if self.training and self.drop:
            y = skip_clips(y, frames, self.drop)
        return x + y.permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """A layer that halves height and width: [N, C, H, W] -> [N, C', H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs, EPSILON)
        self.conv = nn.Conv2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over channels, then convolve."""
        return self.conv(norm_channels(self.norm, x))


class TAdaConvNeXt(nn.Module):
    """The network: frames -> features or class scores. The stem halves time, rounded up."""

    def __init__(self, config: TAdaConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        depths, widths = config.depths, config.widths
        self.stem = nn.Conv3d(3, widths[0], (3, 4, 4), (2, 4, 4), (1, 0, 0))
        self.stem_norm = nn.LayerNorm(widths[0], EPSILON)
        self.downsample = nn.ModuleList(Downsample(*sizes) for sizes in pairwise(widths))
        rates = iter(torch.linspace(0, config.drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ConvNeXtBlock(width, width // widths[0], next(rates)) for _ in range(depth)
            )
            for depth, width in zip(depths, widths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(widths[-1], config.classes)
        _initialise(self)

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.classifier.in_features

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames as for `features` to class scores before the softmax [B, classes]."""
        return self.classifier(self.dropout(self.norm(self.features(frames).mean(-1))))

    def features(self, frames: Tensor) -> Tensor:
        """Map frames [B, 3, T, H, W] to features averaged over space [B, C, ⌈T/2⌉].

        Args:
            frames: uint8, RGB, or normalised as by `extract.tada.conv.normalise_pixels`.
        """
        x = self.stem(normalise_pixels(frames))
        length = x.shape[2]
        x = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = norm_channels(self.stem_norm, x)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.downsample[number - 1](x)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x, length)
        return x.mean((-2, -1)).unflatten(0, (-1, length)).transpose(1, 2)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x·σ(1.702·x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def norm_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Return [N, C, H, W] after a norm of the last axis over its channels."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _initialise(network: TAdaConvNeXt) -> None:
    """Initialise weights at random, as the published code does."""
    for module in network.modules():
        if module is not network.classifier and isinstance(
            module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
        ):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, AttentiveRoute):
            nn.init.zeros_(module.scales.weight)
            nn.init.zeros_(module.shifts.weight)
        elif isinstance(module, ConvNeXtBlock):
            nn.init.zeros_(module.average_norm.weight)
