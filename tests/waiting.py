"""A context in which nothing may make the host wait for the device, shown on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,  # .item(), float(), int(), bool(), .tolist()
    aten.nonzero,  # boolean masks as indices, where() of one argument
    aten.masked_select,
    aten.is_nonzero,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
}
INDEXED = {aten.index, aten.index_put, aten.index_put_}


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        packet = func.overloadpacket
        masks = (
            index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if packet in INDEXED else ())
            if isinstance(index, Tensor)
        )
        # A mask that a number is written to is filled on the device.
        fills = packet in INDEXED - {aten.index} and args[2].numel() == 1
        if packet in WAITING or (any(masks) and not fills):
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def refuse_waiting() -> Iterator[None]:
    """Fail at whatever would make the host wait for the device."""
    with _Refusing():
        yield
