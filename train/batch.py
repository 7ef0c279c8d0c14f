"""What flows from the data to the detector, whether it comes from videos or from activations."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from extract.backbone import Cut
from extract.clips import Window


@dataclass(frozen=True)
class Sample:
    """One window of one video.

    Args:
        video: name; `window`: which stretch of it.
        inputs: in the order of the direction: uint8 frames [3, F, H, W], or the activation at the
            cut `start`, tokens [F/2, P, C] or features [C, F/2].
        mask: bool [T], true where a feature step is real.
        segments: truth in feature steps of the direction [G, 2]; `labels`: classes [G].
        problem: why a video could not be read. In training it is another one, which this sample
            stands in for; in evaluation it is this one, and the inputs mean nothing.
    """

    video: str
    window: Window
    inputs: Tensor
    mask: Tensor
    segments: Tensor
    labels: Tensor
    problem: str | None = None
    start: Cut | None = None


@dataclass(frozen=True)
class Batch:
    """Samples stacked: inputs [B, …], all from the same cut, mask [B, T]; truth stays ragged.

    `problems` holds those samples' that have one, by their place in the batch.
    """

    videos: tuple[str, ...]
    windows: tuple[Window, ...]
    inputs: Tensor
    mask: Tensor
    segments: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    problems: dict[int, str] = field(default_factory=dict)
    start: Cut | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`, copied without waiting."""
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            segments=tuple(s.to(device, non_blocking=True) for s in self.segments),
            labels=tuple(label.to(device, non_blocking=True) for label in self.labels),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for copies in the background (for DataLoader)."""
        return replace(
            self,
            inputs=self.inputs.pin_memory(),
            mask=self.mask.pin_memory(),
            segments=tuple(s.pin_memory() for s in self.segments),
            labels=tuple(label.pin_memory() for label in self.labels),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    return Batch(
        videos=tuple(sample.video for sample in samples),
        windows=tuple(sample.window for sample in samples),
        inputs=torch.stack([sample.inputs for sample in samples]),
        mask=torch.stack([sample.mask for sample in samples]),
        segments=tuple(sample.segments for sample in samples),
        labels=tuple(sample.labels for sample in samples),
        problems={row: sample.problem for row, sample in enumerate(samples) if sample.problem},
        start=samples[0].start,
    )
