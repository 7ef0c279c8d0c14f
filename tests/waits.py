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


class DeviceCopies(TorchDispatchMode):
    """Collects the copies to and from a GPU of a `FakeTensorMode` that the host waits for.

    Those that it need not wait for are counted in `free`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.free = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], result) if name == "_to_copy" else (args[1], args[0])
            ahead = (kwargs or {}).get("non_blocking") or args[2:3] == (True,)
            if source.device.type != target.device.type:
                if ahead:
                    self.free += 1
                else:
                    self.seen.append(f"{source.device.type} to {target.device.type}")
        return result


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
