"""Numbers that weights begin with."""

import math

import torch
from torch import Tensor


@torch.no_grad()
def trunc_normal_(tensor: Tensor, std: float, bound: float = 2.0) -> Tensor:
    """Fill a tensor with normal numbers within ± bound, from one uniform number each; return it.

    torch's own draws again what lies outside, so that its numbers differ.
    """
    least = math.erf(-bound / std / math.sqrt(2.0))
    tensor.uniform_(least, -least).erfinv_().mul_(std * math.sqrt(2.0))
    return tensor.clamp_(min=-bound, max=bound)
