"""Strict loading of weights: every tensor of the file and of the model is accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from configs.messages import truncated
from extract.checkpoints.tensor_files import hash_files


@dataclass(frozen=True)
class Coverage:
    """An account of every tensor of a file of pretrained weights.

    Attributes:
        source: the file or folder; `files`: those with its tensors.
        layout: whose names it has; `size`: of its transformer; both in words.
        loaded: the transformer's tensors that were read from it, in our names.
        computed: those that it lacks and that are no weights: the fixed position table.
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
        ValueError: they are not exactly the module's; lists what is missing, unexpected or of
            another shape.
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
        shown = "\n  ".join(truncated(sorted(lines)))
        raise ValueError(
            f"{source} does not fit this model ({len(lines)} of {len(own)} tensors differ); "
            f"check the sizes of backbone and head in the config:\n  {shown}"
        )
    for part in module.modules():
        if any(t.is_meta for t in (*part.parameters(False), *part.buffers(False))):
            part.to_empty(device="cpu", recurse=False)
    module.load_state_dict(dict(tensors))
