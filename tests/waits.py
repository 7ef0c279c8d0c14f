"""Finds what would make the host wait for a device, on a machine without one."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
COPYING = {"cpu", "numpy", "tolist", "item", "__array__", "__bool__", "__float__", "__int__"}


class Operations(TorchDispatchMode):
    """Collects operations whose result, or its size, the host has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and not index.dtype.is_signed
            for index in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        if by_mask or name in READING or "unique" in name:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Collects what brings a tensor to the host; on a CPU it never becomes an operation.

    Of copies `to` a device only those are known that say "cpu"; others may go anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        targets = [*args[1:], *(kwargs or {}).values()]
        to_host = name == "to" and any(isinstance(t, str) and t == "cpu" for t in targets)
        if name in COPYING or to_host:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))
