"""Settings of pixels: of a detector's frames, and of the views of a recognition network."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PixelConfig:
    """Size of the input and strength of the augmentation.

    Args:
        size: side of the square input in pixels.
        train_short_side: the short side before random cropping; used only where it crops.
        random_crop: area range of the random resized crop; null takes the centre.
        flip: probability of a horizontal flip; 0 where classes mirror each other.
        rand_augment: operations of RandAugment (extract/augmentation/rand_augment.py); 0 for none.
        colour_jitter: brightness, contrast, saturation, hue; null for none.
        antialias: average all pixels that a resized one covers. The published detectors (OpenTAD)
            were trained without: a pixel comes from two neighbours on each axis. Use false to
            reproduce them; for other data true keeps more detail.
    """

    size: int = 160
    train_short_side: int = 182
    random_crop: tuple[float, float] | None = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: int = 2
    colour_jitter: tuple[float, float, float, float] | None = (0.5, 0.5, 0.5, 0.1)
    antialias: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "train_short_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"pixels.{name} must be at least 1 pixel")
        if self.random_crop and self.train_short_side < self.size:
            raise ValueError(
                f"pixels.train_short_side {self.train_short_side} is below pixels.size {self.size}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"pixels.flip is a probability, not {self.flip}")
        if self.rand_augment < 0:
            raise ValueError("pixels.rand_augment is a number of operations, 0 for none")
        if self.random_crop and not 0 < self.random_crop[0] <= self.random_crop[1] <= 1:
            raise ValueError("pixels.random_crop must be two rising shares in (0, 1]")
        if self.colour_jitter is not None and not (
            min(self.colour_jitter) >= 0 and self.colour_jitter[3] <= 0.5
        ):
            raise ValueError(
                "pixels.colour_jitter must be four strengths from 0 on, the hue's at most 0.5, not "
                f"{self.colour_jitter}"
            )


@dataclass(frozen=True)
class ViewConfig:
    """The frames of views.

    Args:
        method: `interval` takes frames at an even distance from somewhere in the stretch;
            `segments` takes one from each of equal parts of the whole stretch.
        frames: in a view.
        interval: from one frame to the next, counted at `fps` (`interval` only); `fps`: frames a
            second that `interval` counts at, whatever the video's frame rate.
        jitter: in training, begin at random and take random frames of the parts; without it
            training has the views of a test with one clip.
        clips: in testing, along time.
    """

    method: Literal["interval", "segments"] = "interval"
    frames: int = 8
    interval: int = 8
    fps: float = 30.0
    jitter: bool = True
    clips: int = 10

    def __post_init__(self) -> None:
        for name in ("frames", "interval", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"views.{name} must be at least 1, not {getattr(self, name)}")
        if self.fps <= 0:
            raise ValueError(f"views.fps must be above 0, not {self.fps}")


@dataclass(frozen=True)
class CropConfig:
    """The pixels of views.

    Args:
        train_short_side: range that a training clip's short side is resized to, at random.
        train_size: side of the random square that is cut out of it.
        flip: probability that a training clip is mirrored, left and right; see `data.mirrored`.
        test_short_side: that a clip is resized to in testing; `test_size`: side of a square then.
        crops: squares side by side along the long side, from end to end; 1 takes the middle.
        antialias: average all pixels that a resized one covers; the published networks (TAdaConv)
            were trained without.
    """

    train_short_side: tuple[int, int] = (224, 340)
    train_size: int = 224
    flip: float = 0.5
    test_short_side: int = 256
    test_size: int = 256
    crops: int = 3
    antialias: bool = True

    def __post_init__(self) -> None:
        low, high = self.train_short_side
        if not 0 < self.train_size <= low <= high:
            raise ValueError(
                f"crops.train_short_side must be two rising sizes, not below crops.train_size "
                f"{self.train_size}, not {self.train_short_side}"
            )
        if not 0 < self.test_size <= self.test_short_side:
            raise ValueError(
                f"crops.test_short_side {self.test_short_side} must not be below crops.test_size "
                f"{self.test_size}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"crops.flip is a probability, not {self.flip}")
        if self.crops < 1:
            raise ValueError(f"crops.crops must be at least 1, not {self.crops}")
