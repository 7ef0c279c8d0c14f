"""Rows of activations, decoded once and held in memory that workers share, or on a GPU."""

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.progress import ProgressBar
from extract.activations.stored import Cached
from extract.parallel.shared_memory import SharedMemory
from extract.sampling.spans import Span

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
SpanKey = tuple[str, str, float]


class HeldRows:
    """The rows of some spans of one stream.

    Args:
        memory: the rows of all spans end to end.
        dtype, row_shape: of the rows.
        places: the first row of every span, and how many it has.
    """

    def __init__(
        self,
        memory: SharedMemory,
        dtype: torch.dtype,
        row_shape: Sequence[int],
        places: dict[SpanKey, tuple[int, int]],
    ) -> None:
        self.memory, self.dtype, self.row_shape = memory, dtype, tuple(row_shape)
        self.places = places
        self.rows = torch.frombuffer(memory.map, dtype=dtype).view(-1, *self.row_shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldRows, (self.memory, self.dtype, self.row_shape, self.places)

    def on(self, device: torch.device) -> "HeldRows":
        """Return the same rows on a device, where they are read for one process alone."""
        moved = copy(self)
        moved.rows = self.rows.to(device)
        del moved.memory  # of the host, which may have it back
        return moved

    def read(self, span: Span, rows: slice = slice(None)) -> Tensor:
        """Return a copy of a span's activation, or of rows of it, as `Cached.read` does."""
        first, count = self.places[_key(span)]
        start, stop, _ = rows.indices(count)
        return self.rows[first + start : first + stop].clone()

    def read_all(self, spans: Sequence[Span]) -> Iterator[Tensor]:
        """Yield copies of whole activations, as `Cached.read_all` does."""
        return map(self.read, spans)


def _key(span: Span) -> SpanKey:
    """Return what tells the spans of one run and one stream apart."""
    return span.video.digest, span.direction, span.window.start


def decoded_bytes(cached: Cached, spans: Sequence[Span]) -> int:
    """Return the bytes that `hold` takes for at least one span.

    Raises:
        Missing, Damaged: see `Cached.read`.
    """
    return cached.read(spans[0], slice(1)).nbytes * sum(span.rows for span in spans)


def hold(cached: Cached, spans: Sequence[Span], quiet: bool) -> HeldRows:
    """Read and decode whole activations.

    Raises:
        Missing, Damaged: one is not there, or not what was written.
    """
    row = cached.read(spans[0], slice(1))
    memory = SharedMemory(decoded_bytes(cached, spans))
    held = HeldRows(memory, row.dtype, row.shape[1:], {})
    first = 0
    bar = ProgressBar(
        total=len(spans), desc="decoding features", delay=2, leave=False, disable=quiet
    )
    with bar:
        for span, rows in zip(spans, cached.read_all(spans), strict=True):
            held.rows[first : first + len(rows)] = rows
            held.places[_key(span)] = first, len(rows)
            first += len(rows)
            bar.update()
    return held


def free_memory() -> int:
    """Return the bytes that programs can still have here; 0 where nobody can say."""
    try:
        free = _fields(MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return 0
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        given_back = _fields(CGROUP / "memory.stat")["inactive_file"]
    except (OSError, KeyError, ValueError):
        return free  # no limit for a group of processes
    return max(min(free, limit - used + given_back), 0)


def free_device_memory(device: torch.device) -> int:
    """Return the bytes that are free on a GPU; 0 for a CPU, which has the host's memory alone."""
    if device.type != "cuda":
        return 0
    # What torch keeps of tensors that are gone is used again.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _fields(file: Path) -> dict[str, int]:
    """Return the number that follows each name in a file of the kernel's."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}
