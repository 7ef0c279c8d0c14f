"""What the branches of a residual network are made of."""

import torch
from torch import Tensor, nn


def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
    """Return x [N, …] with whole samples zeroed at random, the others scaled to keep the mean.

    Stochastic depth: Huang et al., ECCV 2016.
    """
    if probability == 0.0 or not training:
        return x
    kept = 1 - probability
    factors = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(kept)
    if kept > 0.0:
        factors.div_(kept)
    return x * factors


class DropPath(nn.Module):
    """`drop_path` while training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, …] to its like."""
        return drop_path(x, self.probability, self.training)


class LayerScale(nn.Module):
    """A learned factor for each channel, the last dimension."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Map x […, C] to its like."""
        return x * self.gamma
