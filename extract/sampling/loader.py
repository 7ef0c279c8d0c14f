"""The loader of all datasets, in training and in passes over videos."""

from typing import Any

from torch.utils.data import DataLoader, Dataset


def make_loader(
    dataset: "Dataset[Any]", batch_size: int | None, workers: int, **options: Any
) -> "DataLoader[Any]":
    """Return a loader whose workers are spawned, because decoders do not survive a fork.

    Args:
        batch_size: None for a dataset that makes its batches itself.
        workers: processes; 0 to load in this one.
        options: others of torch's DataLoader.
    """
    context = "spawn" if workers else None
    return DataLoader(
        dataset, batch_size, num_workers=workers, multiprocessing_context=context, **options
    )
