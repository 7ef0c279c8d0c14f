"""Samples and batches: a detector's inputs, from videos or from activations, and their truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from extract.sampling.transforms import Augmentation, augment
from extract.sampling.windows import Window
from extract.settings.backbone import Cut


@dataclass(frozen=True)
class Sample:
    """One window of one video.

    Args:
        video: name; `window`: which stretch of it.
        inputs: uint8 frames [3, F, H, W] in the order of the first stream's direction, or of every
            stream its activation at the cut `start`, tokens [F/2, P, C] or features [C, F/2], in
            the dtype of the store.
        turns: of every further stream that sees the same frames: which frame comes when [F].
        mask: bool [T], true where a feature step is real, in either direction.
        segments: truth of every stream in feature steps of its direction [G, 2].
        labels: classes of the truth [G].
        problem: why a video could not be read. In training that is another video, which this one
            replaces; in evaluation it is this one, and the inputs mean nothing.
        augmentation: of the frames, to be made on the device; empty for none.
    """

    video: str
    window: Window
    inputs: tuple[Tensor, ...]
    mask: Tensor
    segments: tuple[Tensor, ...]
    labels: Tensor
    problem: str | None = None
    start: Cut | None = None
    augmentation: Augmentation = ()
    turns: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Samples stacked: each stream's inputs [B, …], all from the same cut, and mask [B, T].

    Frames travel once for all streams: those of the further ones are made by `turned` from `turns`
    [B, F], where they are needed. Truth stays ragged: `segments` of every stream, of every sample.
    `reflection` is R of every window, float32 [B]. `problems` maps places in the batch to the
    problems of their samples. `augmentations` are still to be made, one of each sample.
    """

    videos: tuple[str, ...]
    windows: tuple[Window, ...]
    inputs: tuple[Tensor, ...]
    mask: Tensor
    reflection: Tensor
    segments: tuple[tuple[Tensor, ...], ...]
    labels: tuple[Tensor, ...]
    problems: dict[int, str] = field(default_factory=dict)
    start: Cut | None = None
    augmentations: tuple[Augmentation, ...] = ()
    turns: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`, copied without waiting.

        Activations travel as they are stored, and become float32 there.
        """
        moved = self.each(lambda tensor: tensor.to(device, non_blocking=True))
        inputs = tuple(x.float() if x.is_floating_point() else x for x in moved.inputs)
        return replace(moved, inputs=inputs)

    def augmented(self) -> "Batch":
        """Return the batch with its augmentations made, once, where its tensors are."""
        if not any(self.augmentations):
            return self
        inputs = tuple(
            torch.stack([augment(*each) for each in zip(windows, self.augmentations, strict=True)])
            for windows in self.inputs
        )
        return replace(self, inputs=inputs, augmentations=())

    def turned(self) -> "Batch":
        """Return the batch with the inputs of every stream, each in the order of its direction."""
        if not self.turns:
            return self
        (frames,) = self.inputs
        further = (
            torch.stack([x.index_select(1, places) for x, places in zip(frames, turn, strict=True)])
            for turn in self.turns
        )
        return replace(self, inputs=(frames, *further), turns=())

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for copies in the background (for DataLoader).

        What is on the device already stays there.
        """
        return self.each(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with its tensors changed."""
        return replace(
            self,
            inputs=tuple(map(change, self.inputs)),
            mask=change(self.mask),
            reflection=change(self.reflection),
            segments=tuple(tuple(map(change, stream)) for stream in self.segments),
            labels=tuple(map(change, self.labels)),
            turns=tuple(map(change, self.turns)),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    return Batch(
        videos=tuple(sample.video for sample in samples),
        windows=tuple(sample.window for sample in samples),
        inputs=tuple(map(torch.stack, zip(*[sample.inputs for sample in samples], strict=True))),
        mask=torch.stack([sample.mask for sample in samples]),
        reflection=torch.tensor([sample.window.reflection for sample in samples]),
        segments=tuple(zip(*[sample.segments for sample in samples], strict=True)),
        labels=tuple(sample.labels for sample in samples),
        problems={row: sample.problem for row, sample in enumerate(samples) if sample.problem},
        start=samples[0].start,
        augmentations=tuple(sample.augmentation for sample in samples),
        turns=tuple(map(torch.stack, zip(*[sample.turns for sample in samples], strict=True))),
    )
