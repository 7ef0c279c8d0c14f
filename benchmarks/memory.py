"""Count a training step's memory for every size and way to recompute, on tensors without numbers.

    python -m benchmarks.memory [--sizes s b] [--recompute full] [--windows 1 2] [--markdown]

Nothing is computed and no GPU is needed: fake tensors have shapes and types alone, and every
storage is counted from the operation that makes it until nothing refers to it. A step is forward,
losses and backward in bf16; a CPU's autocast stands in for a GPU's, and clips go through a block
as on a GPU. fp16 needs the same.

    kept  what waits for the backward pass after the forward one
    peak  weights, the highest point of forward and backward, Adam's two averages, and the
          averaged weights

A GPU needs some 1 GB more for its context and workspaces, and 5 to 10 % for gaps between tensors.
"""

import argparse
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import extract.backbone.backbone
import extract.backbone.frozen
from benchmarks.gpu_steps import NAMES, noise_batch
from benchmarks.sizes import CLASSES, FILES, experiment
from extract.backbone.frozen import hold_frozen
from extract.settings.backbone import Recompute
from train.config import Experiment
from train.detector.model import Detector
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

BYTES_PER_LEARNING = 3 * 4  # Adam's two averages and the averaged weight; gradients are counted


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step; see above."""

    kept: int
    peak: int


def count_step(size: str, recompute: Recompute, windows: int) -> StepMemory:
    """Return the memory of a size's training step, counted on fake tensors."""
    config = experiment(size)
    backbone = replace(config.backbone, recompute=recompute)
    return count_memory(replace(config, backbone=backbone), windows)


def count_memory(config: Experiment, windows: int) -> StepMemory:
    """Return the memory of an experiment's training step, counted on fake tensors."""
    config = replace(config, training=replace(config.training, global_batch=windows))
    as_on_gpu = patch.object(extract.backbone.backbone, "runs_on_cpu", lambda tensor: False)
    with torch.device("meta"):
        detector = Detector(config, NAMES).train()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_gpu, LiveBytes() as bytes_:
        detector.to_empty(device="cpu")
        with patch.object(extract.backbone.frozen, "move_to_host", _forget_weights):
            hold_frozen(detector, "bf16", config.pixels.size)
        learning = sum(p.numel() for p in detector.parameters() if p.requires_grad)
        batch = noise_batch(config, "cpu")
        points = pyramid_points(batch.mask.shape[1], config.head.levels, batch.mask.device)
        targets = assign_batch(points, batch.segments[0], batch.labels, CLASSES)
        before = bytes_.now
        with torch.autocast("cpu", torch.bfloat16):
            (output,) = detector(batch.inputs, batch.mask, batch.reflection)
        loss = torch.stack(detection_losses(output, targets)).sum()
        del output
        kept = bytes_.now - before
        loss.backward()
    pyramid_points.cache_clear()  # it keeps what was asked for, here without numbers
    return StepMemory(kept, bytes_.peak + BYTES_PER_LEARNING * learning)


def _forget_weights(*weights: Tensor) -> None:
    """Let no device hold them: here there is no other one to move them to."""
    for weight in weights:
        weight.data = weight.data.new_empty(0)


def memory_table(
    sizes: Sequence[str], recompute: Sequence[Recompute], windows: Sequence[int]
) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table, under a header."""
    yield ("size", "windows", "recompute", "kept", "peak")
    for size in sizes:
        for count in windows:
            for kind in recompute:
                found = count_step(size, kind, count)
                yield (
                    size.upper() if len(size) == 1 else size,
                    str(count),
                    kind,
                    f"{found.kept / 1e9:.2f} GB",
                    f"{found.peak / 1e9:.1f} GB",
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", nargs="+", default=list(FILES), choices=[*FILES, "tiny"])
    parser.add_argument(
        "--recompute", nargs="+", default=get_args(Recompute), choices=get_args(Recompute)
    )
    parser.add_argument("--windows", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--markdown", action="store_true", help="as a table for Markdown")
    args = parser.parse_args()
    for number, row in enumerate(memory_table(args.sizes, args.recompute, args.windows)):
        if args.markdown:
            print(f"| {' | '.join(row)} |", flush=True)
            if not number:
                print(f"|{'---|' * len(row)}")
        else:
            print("{:24} {:>7}  {:9} {:>9} {:>9}".format(*row), flush=True)


if __name__ == "__main__":
    main()
