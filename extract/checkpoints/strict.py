"""Strict loading of weights: every tensor of the file and of the model is accounted for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.messages import truncated
from extract.checkpoints.tensor_files import hash_files
from extract.checkpoints.wrappers import prefix_that_fits

MOST_NAMES = 5


@dataclass(frozen=True)
class Coverage:
    """An account of every tensor of a file of pretrained weights.

    Attributes:
        source: the file or folder; `files`: those with its tensors.
        layout: whose names it has; `size`: of its transformer; both in words.
        loaded: the transformer's tensors that were read from it, in our names.
        computed: those that it lacks and that are not weights: the fixed position table.
        dropped: tensors that are not used, and why; in the file's names or in ours.
    """

    source: str
    files: tuple[Path, ...]
    layout: str
    size: str
    loaded: tuple[str, ...]
    computed: tuple[str, ...]
    dropped: dict[str, str]

    def __str__(self) -> str:
        reasons = "; ".join(dict.fromkeys(self.dropped.values()))
        dropped = f", {len(self.dropped)} dropped ({reasons})" if reasons else ""
        computed = f", {', '.join(self.computed)} computed" if self.computed else ""
        return f"{self.layout}, {self.size}: {len(self.loaded)} tensors loaded{computed}{dropped}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values, with the files' SHA-256."""
        return {
            "source": self.source,
            "sha256": hash_files(self.files),
            "layout": self.layout,
            "size": self.size,
            "loaded": list(self.loaded),
            "computed": list(self.computed),
            "dropped": self.dropped,
        }


def load_state_dict_strict(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path
) -> None:
    """Load `tensors` into `module`, allocating what is still on the meta device.

    Raises:
        ValueError: they are not exactly the module's, or hold NaN or infinite numbers; lists what
            is missing, unexpected, of another shape or no number.
    """
    own = module.state_dict()
    lines = [f"missing    {key} {tuple(own[key].shape)}" for key in own.keys() - tensors.keys()]
    lines += [
        f"unexpected {key} {tuple(tensors[key].shape)}" for key in tensors.keys() - own.keys()
    ]
    lines += [
        f"shape      {key}: file {tuple(tensors[key].shape)}, model {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    if lines:
        differ = len(lines)
        prefix, fit = prefix_that_fits(tensors.keys() - own.keys(), own.keys() - tensors.keys())
        if fit:
            lines.append(f"{fit} of the unexpected ones would fit without '{prefix}'")
        shown = "\n  ".join(truncated(sorted(lines)))
        raise ValueError(
            f"{source} does not fit this model ({differ} of {len(own)} tensors differ); "
            f"check the sizes of backbone and head in the config:\n  {shown}"
        )
    check_finite(tensors, source)
    for part in module.modules():
        if any(t.is_meta for t in (*part.parameters(False), *part.buffers(False))):
            _make_room(part)
    module.load_state_dict(dict(tensors))


def _make_room(part: nn.Module) -> None:
    """Give a module tensors in memory for those on the meta device, like `Module.to_empty`.

    That imports torch's symbolic shapes, half a second of CPU.
    """
    for name, weight in [*part.named_parameters(recurse=False)]:
        room = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
        setattr(part, name, nn.Parameter(room, weight.requires_grad))
    for name, buffer in [*part.named_buffers(recurse=False)]:
        setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def check_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ValueError, which names the first few, if tensors hold NaN or infinite numbers."""
    if bad := find_not_finite(tensors):
        raise ValueError(
            f"{source}: {len(bad)} of {len(tensors)} tensors hold NaN or infinite numbers "
            f"({list_first(bad)}): its training diverged, or a conversion overflowed; take an "
            "earlier checkpoint, or convert it again in float32"
        )


def find_not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a number that is NaN or infinite."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def list_first(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are, as one phrase."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return True
    one_byte = tensor.element_size() == 1  # which torch can store, but hardly compute with
    return bool(torch.isfinite(tensor.float() if one_byte else tensor).all())
