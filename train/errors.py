"""Translation of errors of torch into messages for users."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
def translate_worker_death() -> Iterator[None]:
    """Turn the sudden end of a decoding worker into an OSError that says what to do.

    Torch raises wherever the main thread is when it learns of it: wrap all work between batches in
    this, too.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        cause = " ".join(str(error).split(". ")[0].split())
        raise OSError(
            "a decoding worker ended unexpectedly (a video that crashes its decoder is named "
            "above; otherwise lower training.workers to need less memory); training goes on from "
            f"the last checkpoint with --resume [{cause}]"
        ) from error
