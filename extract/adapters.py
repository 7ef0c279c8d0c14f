"""TIA, the temporal-informative adapter (AdaTAD, Liu et al., CVPR 2024, section 3.3)."""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


class TemporalAdapter(nn.Module):
    """A bottleneck that mixes each spatial position with its neighbours in time.

    Args:
        width: channels of a token.
        ratio: hidden width over `width`.
    """

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.down = nn.Linear(width, hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden)
        self.pointwise = nn.Conv1d(hidden, hidden, 1)
        self.up = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(1))
        trunc_normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.depthwise.weight, std=math.sqrt(2 / 3))
        nn.init.normal_(self.pointwise.weight, std=math.sqrt(2 / hidden))
        # Zero: the adapter starts as the identity.
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.depthwise, self.pointwise, self.up):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, P, C] (T steps of time, P positions) to the same shape."""
        y = F.gelu(self.down(x))
        return x + self.up(y + self._mix(y)) * self.gamma

    def _mix(self, y: Tensor) -> Tensor:
        # The depthwise convolution over T as three shifted products: it keeps the token layout,
        # where a Conv1d would copy everything to [B·P, C, T] and back.
        before, here, after = self.depthwise.weight.squeeze(1).unbind(1)
        assert self.depthwise.bias is not None
        mixed = torch.addcmul(self.depthwise.bias, y, here)
        mixed = mixed + F.pad(y[:, :-1] * before, (0, 0, 0, 0, 1, 0))
        mixed = mixed + F.pad(y[:, 1:] * after, (0, 0, 0, 0, 0, 1))
        return F.linear(mixed, self.pointwise.weight.squeeze(2), self.pointwise.bias)
