"""Addresses of activations, and descriptions of videos and fingerprints."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from cache.dtypes import Dtype

DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DIRECTIONS = ("forward", "reversed")
SPANS = ("window", "video")


@dataclass(frozen=True, eq=False)
class Address:
    """The address of one activation; equal addresses have equal keys.

    Args:
        fingerprint: 32 hex characters; names weights, preprocessing and cut.
        dtype: of the numbers as stored.
        video: SHA-256 of the file's content, hex.
        direction: `forward` or `reversed`.
        span: `window` or `video`.
        frames: frame number of every sample in the order of the direction, padding included [F].
        rows: rows of the whole activation (tubelets).
    """

    fingerprint: str
    dtype: Dtype
    video: str
    direction: str
    span: str
    frames: NDArray[np.int64]
    rows: int

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.direction not in DIRECTIONS or self.span not in SPANS:
            raise ValueError(
                f"no such direction or span: {self.direction!r}, {self.span!r}; there are "
                f"{', '.join(DIRECTIONS)} and {', '.join(SPANS)}"
            )
        for name, text, length in (
            ("fingerprint", self.fingerprint, 32),
            ("video", self.video, 64),
        ):
            if len(text) != length or not set(text) <= set("0123456789abcdef"):
                raise ValueError(f"{name} must be {length} hex characters, not {text!r}")
        if self.rows < 1 or self.frames.ndim != 1 or not len(self.frames):
            raise ValueError(
                f"an activation has one row at least and frames [F], not {self.rows} rows and "
                f"frames of shape {self.frames.shape}"
            )

    @cached_property
    def key(self) -> bytes:
        """A hash of the whole address, 16 bytes."""
        fields = [self.fingerprint, self.dtype, self.video, self.direction, self.span, self.rows]
        hashed = hashlib.blake2b(json.dumps(fields).encode(), digest_size=16, person=b"palindrome")
        hashed.update(np.ascontiguousarray(self.frames, "<i8").data)
        return hashed.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return (
            f"{self.span} of frames {self.frames.min()}–{self.frames.max()} ({self.direction}, "
            f"{self.dtype}, {self.rows} rows) of video {self.video[:12]}, "
            f"fingerprint {self.fingerprint[:12]}"
        )


Times = NDArray[np.float64] | Callable[[], NDArray[np.float64]]
"""Times in seconds, or what returns them when they are asked for."""


@dataclass(frozen=True)
class VideoInfo:
    """A store's description of a video, which outlives the file.

    Args:
        digest: SHA-256 of the file's content, hex.
        name: the file's name without its folder.
        size: bytes.
        frames: number of frames.
        fps: the average where frame times are uneven.
        times: see `times_s`.
    """

    digest: str
    name: str
    size: int
    frames: int
    fps: float
    times: Times | None = field(default=None, compare=False)

    @property
    def times_s(self) -> NDArray[np.float64] | None:
        """Start of every frame and the end of the last, where they are uneven [frames + 1]."""
        return self.times() if callable(self.times) else self.times

    def to_dict(self) -> dict[str, Any]:
        """Return all but the times."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.compare}

    @staticmethod
    def from_version_1(info: dict[str, Any]) -> "VideoInfo":
        """Return what tables of format version 1 hold."""
        encoded = info["times_s"]
        rest = {name: value for name, value in info.items() if name != "times_s"}
        if encoded is None:
            return VideoInfo(**rest)
        times = np.frombuffer(base64.b64decode(encoded), "<f8").astype(np.float64)
        return VideoInfo(**rest, times=times)


@dataclass(frozen=True)
class FingerprintInfo:
    """A store's description of a fingerprint, for people.

    Args:
        fingerprint: 32 hex characters.
        cut: the number of a block, `ladder` or `features`.
        checkpoint: files that the weights came from; one a line.
        about: readable settings; plain JSON values.
    """

    fingerprint: str
    cut: int | Literal["ladder", "features"]
    checkpoint: str
    about: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "FingerprintInfo":
        return FingerprintInfo(**fields)
