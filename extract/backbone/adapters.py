"""TIA, the temporal-informative adapter, and a ladder of them (AdaTAD, Liu et al., CVPR 2024)."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.backbone.recompute import checkpointed
from extract.layers.initial import trunc_normal_
from extract.settings.backbone import Recompute


class TemporalAdapter(nn.Module):
    """A bottleneck that mixes each spatial position with its neighbours in time (section 3.3).

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

    def forward(self, x: Tensor, recompute: Recompute = "none") -> Tensor:
        """Map tokens [B, T, P, C] (T steps of time, P positions) to the same shape."""
        return x + self.change(x, recompute)

    def change(self, x: Tensor, recompute: Recompute = "none") -> Tensor:
        """Return the change that the adapter adds to tokens [B, T, P, C]."""
        mixed = checkpointed(self._mix, "none" if recompute == "none" else "full", self.down(x))
        # The scale goes into the weights: its gradient then needs no copy of the wide product.
        return F.linear(mixed, self.up.weight * self.gamma, self.up.bias * self.gamma)

    def _mix(self, hidden: Tensor) -> Tensor:
        """Return GELU of [B, T, P, H] plus its convolution over T and then over H."""
        y = F.gelu(hidden)
        # To a convolution over T and P this layout is "channels last": nothing is copied.
        z = F.conv2d(
            y.permute(0, 3, 1, 2),
            self.depthwise.weight.unsqueeze(-1),
            self.depthwise.bias,
            padding=(1, 0),
            groups=self.depthwise.groups,
        )
        weight = self.pointwise.weight.squeeze(2)
        return y + F.linear(z.permute(0, 2, 3, 1), weight, self.pointwise.bias)


class Ladder(nn.Module):
    """Adapters beside a transformer that never learns (AdaTAD†, section 3.4).

    Each reads the output of its block; their changes are added to the output of the last block. No
    gradient passes through the transformer.

    Args:
        blocks: that have an adapter, the transformer's last one among them.
        width: channels C of a token.
        ratio: hidden width of an adapter over `width`.
    """

    def __init__(self, blocks: Iterable[int], width: int, ratio: float) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({str(k): TemporalAdapter(width, ratio) for k in blocks})

    def forward(self, x: Tensor, recompute: Recompute = "none") -> Tensor:
        """Map the outputs of n blocks, concatenated [B, T, P, n·C], to tokens [B, T, P, C]."""
        parts, changes = x.chunk(len(self.adapters), -1), None
        for k, part in zip(self.adapters, parts, strict=True):
            changes = self.add_change(changes, int(k), part, recompute)
        assert changes is not None
        return parts[-1] + changes

    def add_change(
        self, changes: Tensor | None, k: int, x: Tensor, recompute: Recompute = "none"
    ) -> Tensor:
        """Return the sum of changes with that of the adapter beside block k.

        Args:
            changes: of the adapters before it, in the type of `x`; None if there are none.
            x: the block's output [B, T, P, C].
        """
        change = self.adapter_beside(k).change(x, recompute)
        return change.to(x.dtype) if changes is None else changes + change

    def adapter_beside(self, k: int) -> TemporalAdapter:
        """Return the adapter that reads the output of block k."""
        adapter = self.adapters[str(k)]
        assert isinstance(adapter, TemporalAdapter)
        return adapter
