"""Checkpoints that are written in a thread, while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from train.engine.checkpoint import (
    Checkpoint,
    Shared,
    make_whole,
    save_checkpoint,
    save_shared,
)

WORTH_SHARING = 64 * 2**20
"""Bytes of frozen weights below which every checkpoint has them: to write them takes no time."""


class CheckpointWriter:
    """Writes one checkpoint at a time, in order; leaving it as a context waits for the last.

    What does not learn is written once, into a file beside them, until the run has ended: hours of
    training write it dozens of times, and other processes may have to wait for that. `finish` makes
    single files of them, which can be copied anywhere.
    """

    def __init__(self) -> None:
        self.pending: Future[None] | None = None
        self._shared: Shared | None = None

    def write(
        self, path: Path, content: Checkpoint[Any], frozen: set[str], written: Callable[[], None]
    ) -> None:
        """Begin to write a file, once the one before is written.

        Args:
            frozen: names of the model's tensors that do not change; others are copied first.
            written: called in the thread when the file is there.

        Raises:
            FloatingPointError, OSError: of the file before, see `save_checkpoint`.
        """
        self.wait()
        copied = _copy_to_host(content, frozen)

        def save() -> None:
            save_checkpoint(path, copied, self._share(path.parent, copied, frozen))
            written()

        # It ends with the file: the threads of OpenMP that belong to a thread that stays make those
        # of a CPU's steps wait asleep for each other, and the steps take up to twice as long.
        thread = ThreadPoolExecutor(1, "checkpoints")
        self.pending = thread.submit(save)
        thread.shutdown(wait=False)

    def finish(self, folder: Path) -> None:
        """Wait until everything is written, and make every file hold all that belongs to it.

        Raises:
            FloatingPointError, OSError: see `save_checkpoint`; what was written can be read.
        """
        self.wait()
        make_whole(folder)  # those of earlier launches, too
        self._shared = None

    def _share(self, folder: Path, content: Checkpoint[Any], frozen: set[str]) -> Shared | None:
        """Return what is written beside the checkpoints of a run; None if that is too little."""
        if self._shared is None:
            kept = {_place(t): t.nbytes for n, t in content.model.items() if n in frozen}
            if sum(kept.values()) >= WORTH_SHARING:
                self._shared = save_shared(folder, content, frozen)
        return self._shared

    def wait(self) -> None:
        """Wait until everything is written, and raise what went wrong."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def raise_failure(self) -> None:
        """Raise what went wrong, without waiting for what is being written."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def close(self) -> None:
        """Let what is being written end, whatever becomes of it."""
        if self.pending is not None:
            wait([self.pending])


def _copy_to_host(content: Checkpoint[Any], frozen: set[str]) -> Checkpoint[Any]:
    """Return a checkpoint whose tensors stay as they are; shared ones are shared again."""
    copies: dict[Any, Tensor] = {
        _place(tensor): tensor for name, tensor in content.model.items() if name in frozen
    }

    def copy(tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in copies:
            copies[place] = tensor.detach().to("cpu", copy=True)
        return copies[place]

    model, ema, training = tree_map_only(
        Tensor, copy, (content.model, content.ema, content.training)
    )
    return content._replace(model=model, ema=ema, training=training)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common that are the same numbers in memory."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
