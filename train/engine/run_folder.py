"""Checks of a run's folder and its disk before training."""

import os
import shutil
import tempfile
from pathlib import Path

from torch import nn

from configs.messages import format_bytes
from configs.system import fcntl
from extract.checkpoints.beside import SHARED_FILES

LOCK = ".lock"


def claim_folder(folder: Path, begun: bool) -> None:
    """Create a run's folder if need be, test writing into it, and lock it against other runs.

    The system releases the lock with the process, however that ends.

    Args:
        begun: whether the folder was found to hold a run to resume.

    Raises:
        ValueError: that is impossible, or another run is writing there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
        # Never closed: that would release the lock.
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock_file(lock) or (folder / "last.pt").exists() != begun:
            raise ValueError(
                f"out: another run is writing into {folder}, or just was; wait until it has ended, "
                "or choose another --out"
            )
    except OSError as error:
        raise ValueError(
            f"out: cannot write into {folder}: {error.strerror}; make it writable or choose "
            "another --out"
        ) from error


def _lock_file(file: int) -> bool:
    """Lock a file; return whether nobody else holds it, True where there are no locks."""
    if fcntl is None:
        return True
    try:
        # Unlike with `flock`, workers, which might outlive the run, do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def check_checkpoint_space(folder: Path, detector: nn.Module, keeps_best: bool) -> None:
    """Raise ValueError unless a run's checkpoints fit on the disk, one of them written aside.

    Args:
        folder: the run's, which exists; `detector`: the model trained in it.
        keeps_best: whether there will be a best.pt.

    Raises:
        ValueError: they do not fit.
    """
    # Streams may share tensors, which are stored once.
    weights = sum({t.data_ptr(): t.nbytes for t in detector.state_dict().values()}.values())
    learning = sum(p.nbytes for p in detector.parameters() if p.requires_grad)
    # Averages count once, AdamW's two moments twice; what is frozen is stored once.
    best, last = weights + learning, weights + 3 * learning
    # A run that was killed has what its checkpoints share in a file of its own.
    present = [folder / "last.pt", folder / "best.pt", *folder.glob(SHARED_FILES)]
    stored = sum(path.stat().st_size for path in present if path.exists())
    needed = 2 * last + keeps_best * best - stored
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"out: checkpoints need {format_bytes(needed)}, but the disk of {folder} has "
            f"{format_bytes(free)} free; make room or choose another --out"
        )
