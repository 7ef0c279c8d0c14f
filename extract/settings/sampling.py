"""Settings of the sampling of frames; `extract.sampling.windows` explains the units of time."""

from dataclasses import dataclass
from typing import Literal

from extract.settings.units import CLIP_FRAMES

Direction = Literal["forward", "reversed"]

Pairing = Literal["nearest", "index", "uncorrected"]
"""Which points of the two directions are paired: those nearest to each other in time; those with
the same number, counted from opposite ends; or these without correcting for where they are in
time, which is wrong: a control."""

SpanKind = Literal["window", "video"]


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampling of videos.

    Args:
        method: `window` takes strided windows; `resize` fits the whole video into one.
        window_size: feature steps of a window.
        scale_factor: samples per feature step.
        fps: samples per second of video, whatever its frame rate (`window` only): the nearest
            frames are taken. Null takes frames by `snippet_stride`, as the published runs do.
        snippet_stride: frames per feature step (`window` without `fps`); a multiple of
            `scale_factor`.
        test_overlap, validation_overlap: share of a window that the next one repeats, below 1.
        test_whole: test on whole videos, padded, whatever their length, as the published runs on
            features do; for imported features only.
        min_completeness: share of an action's length that must be inside a training window.
        crop: a training video shorter than the window is cropped to a share of its length in this
            range.
    """

    method: Literal["window", "resize"] = "window"
    window_size: int = 768
    scale_factor: int = 1
    snippet_stride: int = 4
    test_overlap: float = 0.5
    validation_overlap: float = 0.5  # while training, too, windows are as when testing
    test_whole: bool = False
    min_completeness: float = 0.75
    crop: tuple[float, float] = (0.9, 1.0)
    fps: float | None = None

    def __post_init__(self) -> None:
        for name in ("window_size", "scale_factor", "snippet_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 1, not {getattr(self, name)}")
        if self.fps is not None and not self.fps > 0:
            raise ValueError("sampling.fps must be above 0 samples per second, or null")
        if self.fps is not None and self.method == "resize":
            raise ValueError(
                "sampling.method resize squeezes whole videos: leave sampling.fps null"
            )
        if not 0 < self.min_completeness <= 1:
            raise ValueError("sampling.min_completeness must be a share above 0, at most 1")
        if self.samples % CLIP_FRAMES:
            raise ValueError(
                f"sampling.window_size × sampling.scale_factor is {self.samples}; "
                f"it must be a multiple of {CLIP_FRAMES}, the frames of a clip"
            )
        if self.fps is None and self.snippet_stride % self.scale_factor:
            raise ValueError(
                f"sampling.snippet_stride {self.snippet_stride} must be a multiple of "
                f"sampling.scale_factor {self.scale_factor}: samples sit on whole frames"
            )
        for name in ("test_overlap", "validation_overlap"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 0 and below 1")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"sampling.crop must be two rising shares in (0, 1], not {self.crop}")

    @property
    def samples(self) -> int:
        """Frames that the backbone sees per window."""
        return self.window_size * self.scale_factor

    @property
    def step(self) -> int:
        """Units of the timeline per feature step."""
        return self.snippet_stride if self.fps is None else self.scale_factor

    @property
    def sample_step(self) -> int:
        """Units of the timeline from one sample to the next."""
        return self.step // self.scale_factor
