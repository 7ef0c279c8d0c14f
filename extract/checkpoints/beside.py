"""Weights that a run's checkpoints share: they never change, and are written once, beside them.

While a run goes on, its checkpoints name that file in their field `beside`; at its end they hold
everything themselves again.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIELD = "beside"
SHARED_FILES = f"frozen-{'[0-9a-f]' * 16}.pt"
"""What matches them, and no file of a user's own."""


def name_shared(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the file that holds these tensors: a hash of names, types and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.view(-1).view(torch.uint8).numpy().data)
    return f"frozen-{found.hexdigest()[:16]}.pt"


def join_shared(path: Path, fields: dict[str, Any]) -> None:
    """Put the tensors from the file beside a checkpoint into its fields, if it names one.

    Args:
        path: of the checkpoint; `fields`: its content.

    Raises:
        ValueError: that file is missing or damaged.
    """
    about = fields.pop(FIELD, None)
    if about is None:
        return
    file = path.parent / Path(about["file"]).name
    if not file.is_file():
        raise ValueError(
            f"{path} is of a run that had not ended, and its frozen weights are in {file.name}, "
            f"which is not in {path.parent}: copy it there from the run's folder, or take the "
            "checkpoint after the run has ended"
        )
    try:
        shared = torch.load(file, map_location="cpu", weights_only=True)
        damaged = zipfile.ZipFile(file).testzip()  # torch itself checks no sums
    except Exception as error:
        raise ValueError(f"{file}, which {path} needs, is damaged") from error
    lost = set(about["order"]) - fields["model"].keys() - shared.keys()
    if damaged or lost:
        raise ValueError(f"{file}, which {path} needs, is damaged ({damaged or min(lost)})")
    for part in ("model", "ema"):
        whole = shared | fields[part]
        fields[part] = {name: whole[name] for name in about["order"]}
