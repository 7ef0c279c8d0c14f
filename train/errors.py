"""Translation of errors of torch into messages for users."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from extract.video.watchdog import file_being_decoded

# Of torch, where the process that trains has no file left to receive a batch's memory with.
NOT_RECEIVED = "Too many open files", "items of ancdata", "Pin memory thread"
AGAIN = "then run the same command again, training with --resume"
SMALLER_BATCHES = "raise training.accumulate: as many windows an update, fewer at a time"


@contextmanager
def translate_oom(remedy: str) -> Iterator[None]:
    """Turn a device that is out of memory into a MemoryError that says what to do.

    Args:
        remedy: the setting that helps most.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the device ran out of memory; {remedy}, set training.precision bf16, or lower the "
            "number of frames or their size; detectors need less with backbone.recompute full, too"
        ) from error


@contextmanager
def translate_worker_death(setting: str = "training.workers") -> Iterator[None]:
    """Turn the sudden end of a decoding worker, or batches lost, into an OSError with a remedy.

    Torch raises wherever the main thread is when it learns of it: wrap all work between batches in
    this, too. A worker that lacks memory raises MemoryError; what else one raises stays as it is.

    Args:
        setting: the number of workers.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        raised = text.startswith("Caught ")  # by the worker, which goes on
        cause = text.rstrip().splitlines()[-1] if raised else " ".join(text.split(". ")[0].split())
        again = f"{AGAIN} [{cause}]"
        if any(sign in cause for sign in NOT_RECEIVED):
            raise OSError(
                "batches of decoding workers cannot be received; allow more open files (ulimit -n) "
                f"or lower {setting}; {again}"
            ) from error
        if raised and "allocate memory" in text:
            raise MemoryError(f"a decoding worker lacks memory; lower {setting}") from error
        if raised or "DataLoader worker" not in cause:
            raise
        pids = re.search(r"pid(?:\(s\))? ([\d, ]+)", cause)
        files = map(file_being_decoded, map(int, pids[1].split(",")) if pids else ())
        names = ", ".join(sorted({str(file) for file in files if file}))
        memory = f"lower {setting} to need less memory"
        remedy = (
            f" while it decoded {names} (repair the file or list the video under data.blocked; "
            f"where it is another one each time, {memory})"
            if names
            else f" ({memory})"
        )
        raise OSError(f"a decoding worker ended unexpectedly{remedy}; {again}") from error
