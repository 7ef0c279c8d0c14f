"""Whether weights have changed, seen at a glance: without hashing them all."""

import hashlib
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from extract.activations.fingerprints import tensors_of
from extract.backbone.imported import AnyBackbone

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
COLUMNS = 1024


def glance_at_weights(backbone: AnyBackbone) -> object:
    """Return a value that differs once any weight or buffer has changed.

    Not every change raises a tensor's version (fused optimizers and `.data` do not), so sums over
    the values' bits are looked at, too. Every row has a factor of its own: values that change
    places change the sums.
    """
    tensors = [tensor.detach() for tensor in tensors_of(backbone).values()]
    seen = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    sums = [torch.zeros(0, dtype=torch.int64)]  # imported features have no weights
    for tensor in tensors:
        bits = tensor.contiguous().view(BITS[tensor.element_size()]).flatten()
        grid = F.pad(bits, (0, -len(bits) % COLUMNS)).view(-1, COLUMNS)
        if grid.dtype in (torch.int8, torch.int16):
            grid = grid.int()
        # Round numbers end in zeros, with which factors alone would make nothing of a difference.
        mixed = (grid >> 16).bitwise_xor_(grid)
        mixed *= _factors(len(grid), grid.dtype, grid.device)[:, None]
        sums.append(mixed.sum(0))
    # What does not learn may be on the host; see `hold_frozen`.
    return seen, hashlib.blake2b(torch.cat([each.cpu() for each in sums]).numpy().data).digest()


@lru_cache(maxsize=64)
def _factors(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random odd numbers [count], always the same."""
    generator = torch.Generator().manual_seed(count)
    return (torch.randint(2**31, (count,), generator=generator).to(dtype) * 2 + 1).to(device)
