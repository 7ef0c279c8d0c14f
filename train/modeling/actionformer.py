"""ActionFormer's head: features -> raw class scores and boundary distances.

Source: ActionFormer (Zhang et al., ECCV 2022), section 3; AdaTAD (Liu et al., CVPR 2024) trains it
end to end with global attention. Activations travel as [B, T, C] inside, so that norms,
linear layers and attention need no copies; public methods take and return [B, C, T].

Every parameter that is exempt from weight decay (biases, norms, scales) has at most one axis.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.backbone.videomae import sine_positions
from extract.layers.residual import DropPath, LayerScale
from train.modeling.attention import ConvAttention, linear
from train.modeling.config import HeadConfig
from train.modeling.convolution import conv_over_time

PRIOR = 0.01  # probability of every class before training; keeps the first focal losses small
SCALE_START = 1e-4  # of the residual branches: deep blocks start close to the identity
MLP_RATIO = 4


class HeadOutput(NamedTuple):
    """Predictions per pyramid level l, a point every 2^l feature steps.

    Attributes:
        logits: class scores before the sigmoid, [B, K, T_l].
        distances: from a point back to the start and on to the end, in strides, [B, 2, T_l]; fused
            ones may be negative.
        masks: True where a point lies inside the video, [B, T_l].
    """

    logits: tuple[Tensor, ...]
    distances: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B, P, K], distances [B, P, 2] and mask [B, P] of all P points."""
        logits = torch.cat(self.logits, -1).transpose(1, 2)
        distances = torch.cat(self.distances, -1).transpose(1, 2)
        return logits, distances, torch.cat(self.masks, -1)


class ConvNorm(nn.Module):
    """Convolution over three steps, LayerNorm, ReLU; zero where a step is not valid."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map x [B, T, in_channels] and valid [B, T, 1] to [B, T, width]."""
        return F.relu(self.norm(conv_over_time(self.conv, x))) * valid


class TransformerBlock(nn.Module):
    """Pre-norm transformer block; with stride 2 it halves the resolution.

    Args:
        window: how many steps a step attends to; None for all.
    """

    def __init__(self, config: HeadConfig, stride: int, window: int | None = None) -> None:
        super().__init__()
        width = config.width
        self.stride = stride
        self.dropout = nn.Dropout(config.projection_dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = ConvAttention(width, config.heads, stride, window)
        self.attention_path = _residual(config)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            linear(width, MLP_RATIO * width),
            nn.Sequential(nn.GELU(), self.dropout),
            linear(MLP_RATIO * width, width),
        )
        self.mlp_path = _residual(config)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [B, T, C] and valid [B, T, 1] to their like with T / stride steps."""
        skip = x
        if self.stride > 1:
            skip = F.max_pool1d(x.mT, 3, self.stride, padding=1).mT
            # Point i is at step i · stride: of V valid steps, ceil(V / stride) points remain.
            valid = valid[:, :: self.stride]
        attended = self.dropout(self.attention(self.attention_norm(x), valid))
        x = skip * valid + self.attention_path(attended * valid)
        x = x + self.mlp_path(self.dropout(self.mlp(self.mlp_norm(x))) * valid)
        return x, valid


def _residual(config: HeadConfig) -> nn.Sequential:
    """Return the end of a residual branch: a learned scale, then drop path."""
    return nn.Sequential(LayerScale(config.width, SCALE_START), DropPath(config.drop_path))


class ActionFormer(nn.Module):
    """A pyramid over time and two predictors shared by its levels.

    Args:
        in_channels: channels C of the features.
        classes: number of action classes K.
        config: all other sizes.
    """

    def __init__(self, in_channels: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        if in_channels < 1 or classes < 1:
            raise ValueError(f"head: {in_channels} channels and {classes} classes; need 1 or more")
        width, towers = config.width, range(config.tower_convs)
        self.divisor, self.learns = 2 ** (config.levels - 1), config.learns
        self.positions = config.positions
        self.input_dropout = nn.Dropout1d(config.input_dropout)
        self.embed = nn.ModuleList(
            ConvNorm(width if i else in_channels, width) for i in range(config.embed_convs)
        )
        lowest, *higher = config.attention_windows
        self.stem = nn.ModuleList(
            TransformerBlock(config, 1, lowest) for _ in range(config.stem_blocks)
        )
        self.branch = nn.ModuleList(TransformerBlock(config, 2, window) for window in higher)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(config.levels))
        self.class_tower = nn.ModuleList(ConvNorm(width, width) for _ in towers)
        self.distance_tower = nn.ModuleList(ConvNorm(width, width) for _ in towers)
        self.class_out = nn.Conv1d(width, classes, 3, padding=1)
        self.distance_out = nn.Conv1d(width, 2, 3, padding=1)
        self.scales = nn.ModuleList(LayerScale(1, 1.0) for _ in range(config.levels))
        nn.init.constant_(self.class_out.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        # The reference begins at 0, where one seed in 20 gives a boundary that is 0 at every point:
        # ReLU then passes no gradient, and it never learns.
        nn.init.ones_(self.distance_out.bias)  # type: ignore[arg-type]
        self.requires_grad_(config.learns)

    def train(self, mode: bool = True) -> "ActionFormer":
        """Set the mode; a head that does not learn stays in eval mode."""
        return super().train(mode and self.learns)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """Return predictions from features [B, C, T] and mask [B, T], True where a step is valid.

        Valid steps come first and every window has at least one. T must be a multiple of
        2^(levels - 1). Of the padding, only the step next to the last valid one can touch the
        result: the first convolution sees it, as in the reference, which pads pixels by repeating
        the last frame. Without such a frame, pass zeros.

        Raises:
            ValueError: T is not a multiple of 2^(levels - 1).
        """
        return self.predict(*self.pyramid(features, mask))

    def pyramid(
        self, features: Tensor, mask: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return per level l the normed features [B, width, T / 2^l] and their mask [B, T / 2^l].

        Arguments and errors are those of `forward`.
        """
        if features.shape[-1] % self.divisor:
            raise ValueError(
                f"windows of {features.shape[-1]} steps do not fit a pyramid of "
                f"{len(self.norms)} levels: pad them, and their mask, to a multiple of "
                f"{self.divisor}"
            )
        x, valid = self.input_dropout(features).mT, mask.unsqueeze(-1)
        for conv in self.embed:
            x = conv(x, valid)
        if self.positions:
            _, steps, width = x.shape
            x = x + sine_positions(steps, width, x.device) / math.sqrt(width) * valid
        for block in self.stem:
            x, valid = block(x, valid)
        levels, masks = [x], [valid]
        for block in self.branch:
            x, valid = block(x, valid)
            levels.append(x)
            masks.append(valid)
        normed = tuple(norm(x).mT for norm, x in zip(self.norms, levels, strict=True))
        return normed, tuple(valid.squeeze(-1) for valid in masks)

    def predict(self, levels: tuple[Tensor, ...], masks: tuple[Tensor, ...]) -> HeadOutput:
        """Return predictions from the results of `pyramid`."""
        # All levels pass the towers as one sequence. One blank step behind each level is the
        # zero padding its convolutions would see on their own.
        lengths = [level.shape[-1] + 1 for level in levels]
        x = torch.cat([F.pad(level.mT, (0, 0, 0, 1)) for level in levels], 1)
        valid = torch.cat([F.pad(mask, (0, 1)) for mask in masks], -1).unsqueeze(-1)
        y = x
        for class_conv, distance_conv in zip(self.class_tower, self.distance_tower, strict=True):
            x, y = class_conv(x, valid), distance_conv(y, valid)
        logits = conv_over_time(self.class_out, x).mT.split(lengths, -1)
        raw = conv_over_time(self.distance_out, y).mT.split(lengths, -1)
        return HeadOutput(
            logits=tuple(level[..., :-1] for level in logits),
            distances=tuple(
                F.relu(scale(level[..., :-1]))
                for scale, level in zip(self.scales, raw, strict=True)
            ),
            masks=masks,
        )
