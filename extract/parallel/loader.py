"""The loader of all datasets, in training and in passes over videos.

Torch lets a worker's tensors share /dev/shm, in a thread of the worker: where it is full, as in
containers, the thread ends and the loader waits for ever. Here a batch's tensors stand in
`SharedMemory`, and a worker packs them before it hands the batch on, where torch forwards what is
raised.
"""

import io
import math
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from extract.parallel.shared_memory import SharedMemory
from extract.parallel.spawning import WorkerContext
from extract.video.watchdog import note_taker

ALIGNED = 64  # bytes of a line of a processor's cache
Place = tuple[torch.dtype, torch.Size, int]
"""Where a tensor stands in memory: its type and shape, and the byte that it begins at."""


def make_loader(
    dataset: "Dataset[Any]", batch_size: int | None, workers: int, **options: Any
) -> "DataLoader[Any]":
    """Return a loader of a dataset's batches.

    Where this process uses a GPU, batches are pinned, so that their copy there need not wait.

    Args:
        batch_size: None for a dataset that makes its batches itself.
        workers: processes; 0 to load in this one.
        options: others of torch's DataLoader.
    """
    # Asked for a CPU's run, CUDA would take memory of a GPU that the run does not use.
    options["pin_memory"] = torch.cuda.is_initialized()
    if not workers:
        return DataLoader(dataset, batch_size, **options)
    collate = options.pop("collate_fn", default_convert if batch_size is None else default_collate)
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        multiprocessing_context=WorkerContext(),
        collate_fn=PackedCollate(collate),
        worker_init_fn=note_taker(),
        **options,
    )


class PackedCollate:
    """A function that makes batches, and packs them; unpickled they are as they were."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> "PackedBatch":
        return PackedBatch(self.collate(samples))


class PackedBatch:
    """A batch as bytes that are ready to be sent, once; its tensors are in shared memory.

    Raises:
        OSError: there is no memory, or too many files are open.
    """

    def __init__(self, batch: Any) -> None:
        text = io.BytesIO()
        pickler = _TensorPickler(text)
        pickler.dump(batch)
        tensors, places, size = pickler.tensors, list[Place](), 0
        for tensor in tensors:
            places.append((tensor.dtype, tensor.shape, size))
            size += math.ceil(tensor.nbytes / ALIGNED) * ALIGNED
        memory = SharedMemory(max(size, 1))
        for tensor, place in zip(tensors, places, strict=True):
            _tensor_at(memory, place).copy_(tensor)
        # All that can fail is done here; the worker's thread only passes these bytes on.
        self.message = bytes(ForkingPickler.dumps((text.getvalue(), memory, places)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self.message,)


def _unpack(message: bytes) -> Any:
    text, memory, places = pickle.loads(message)
    tensors = [_tensor_at(memory, place) for place in places]
    return _TensorUnpickler(io.BytesIO(text), tensors).load()


def _tensor_at(memory: SharedMemory, place: Place) -> Tensor:
    """Return the tensor at a place, which keeps the memory mapped as long as it lives."""
    dtype, shape, begin = place
    count = shape.numel()
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory.map, dtype=dtype, count=count, offset=begin).view(shape)


class _TensorPickler(pickle.Pickler):
    """A pickler that sets tensors aside, and writes their numbers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, item: Any) -> int | None:
        if type(item) is not Tensor:
            return None
        self.tensors.append(item)
        return len(self.tensors) - 1


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]
