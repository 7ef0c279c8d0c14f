"""Attention over time with convolutions in place of position embeddings (ActionFormer, 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.modeling.convolution import conv_over_time

BLOCK = 64
"""Queries that share their keys in local attention."""


class ConvProjection(nn.Module):
    """Queries, keys or values: a depthwise convolution, which also halves, LayerNorm, linear."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.linear = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, C] to [B, T / stride, C]."""
        y: Tensor = self.linear(self.norm(conv_over_time(self.conv, x)))
        return y


class ConvAttention(nn.Module):
    """Multi-head attention over all steps, or over the nearest ones.

    Args:
        window: how many steps a step attends to, itself in the middle; None for all.
    """

    def __init__(self, width: int, heads: int, stride: int, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query = ConvProjection(width, stride)
        self.key = ConvProjection(width, stride)
        self.value = ConvProjection(width, stride)
        self.out = linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map x [B, T, C] to [B, T / stride, C]; only `valid` [B, T / stride, 1] is attended to."""
        if x.device.type != "cpu":
            x = x.mT.contiguous().mT  # as `conv1d` wants it, made once for all three
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if self.window is None or self.window // 2 >= query.shape[2] - 1:
            mask = valid.mT.unsqueeze(1)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mixed = local_attention(query, key, value, valid.squeeze(-1), self.window)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, window: int
) -> Tensor:
    """Let every step attend to the valid ones among the `window` steps around it.

    Blocks of queries share a stretch of keys, so that time and memory grow with T, not with T².

    Args:
        query, key, value: [B, H, T, D].
        valid: bool [B, T].
        window: odd.

    Returns:
        [B, H, T, D]; where a step sees no valid one, its own value.
    """
    steps, reach = query.shape[2], window // 2
    blocks = -(-steps // BLOCK)
    behind = blocks * BLOCK - steps
    length = BLOCK + 2 * reach  # keys that a block of queries sees
    queries = F.pad(query, (0, 0, 0, behind)).unflatten(2, (blocks, BLOCK))
    keys, values = (
        F.pad(x, (0, 0, reach, reach + behind)).unfold(2, length, BLOCK).mT for x in (key, value)
    )
    seen = F.pad(valid, (reach, reach + behind)).unfold(1, length, BLOCK)  # [B, blocks, length]
    place = torch.arange(BLOCK, device=query.device)[:, None]
    offset = torch.arange(length, device=query.device) - reach - place
    mask = seen.unsqueeze(2) & (offset.abs() <= reach) | (offset == 0)
    # Blocks as a batch: with an axis of their own a GPU's fused kernels would not take them.
    queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask.flatten(0, 1).unsqueeze(1)
    )
    return mixed.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :steps]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer whose bias starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    return layer
