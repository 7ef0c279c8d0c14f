"""Folders that cannot be written and disks that are full: told before training."""

import shutil
import tempfile
from pathlib import Path

from torch import nn


def claim_folder(folder: Path) -> None:
    """Create a run's folder, if need be, and really write into it.

    Raises:
        ValueError: that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as error:
        raise ValueError(
            f"out: cannot write into {folder}: {error.strerror}; make it writable or choose "
            "another --out"
        ) from error


def refuse_full_disk(folder: Path, detector: nn.Module, keeps_best: bool) -> None:
    """Stop unless a run's checkpoints fit on the disk, one of them being written aside.

    Args:
        folder: the run's, which exists; `detector`: what is trained in it.
        keeps_best: whether there will be a best.pt.

    Raises:
        ValueError: they do not fit.
    """
    weights = sum(tensor.nbytes for tensor in detector.state_dict().values())
    learning = sum(p.nbytes for p in detector.parameters() if p.requires_grad)
    # Averages count once, AdamW's two moments twice; what is frozen is stored once.
    best, last = weights + learning, weights + 3 * learning
    present = [folder / name for name in ("last.pt", "best.pt")]
    stored = sum(path.stat().st_size for path in present if path.exists())
    needed = 2 * last + keeps_best * best - stored
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"out: checkpoints need {needed / 1e6:,.0f} MB, but the disk of {folder} has "
            f"{free / 1e6:,.0f} MB free; make room or choose another --out"
        )
