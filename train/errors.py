"""What entry scripts say when something goes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

EXPECTED = (ValueError, FloatingPointError, MemoryError, OSError)
"""Errors whose text is meant for the user; anything else is a bug and keeps its traceback."""


def message(error: BaseException) -> str:
    """Return an error's text as one `error: …` line, without a worker process's traceback."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback" in text:
        text = text.rstrip().splitlines()[-1].split(": ", 1)[-1]
    return f"error: {text}"


@contextmanager
def memory_advice(batch_setting: str) -> Iterator[None]:
    """Turn a device that is out of memory into a MemoryError that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the device ran out of memory; lower {batch_setting} (training.accumulate makes up "
            "for smaller training batches), set backbone.recompute full or "
            "training.precision bf16, or lower sampling.window_size or pixels.size"
        ) from error
