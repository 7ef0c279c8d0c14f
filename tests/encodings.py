"""Small videos in many encodings, and what other decoders see in them."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoding:
    """A way to write frames; `access` is how the reader must then get at them."""

    codec: str
    access: str
    suffix: str = ".mp4"
    options: tuple[tuple[str, str], ...] = ()
    pixels: str = "yuv420p"
    size: tuple[int, int] = (64, 128)
    irregular: bool = False
    noisy: bool = False


REFRESH = (("x264-params", "intra-refresh=1:keyint=24:bframes=0:scenecut=0"),)
ENCODINGS = {
    "H.264": Encoding("libx264", "indexed"),
    "B-frames, long GOP": Encoding("libx264", "indexed", options=(("bf", "3"), ("g", "250"))),
    "intra only": Encoding("libx264", "indexed", options=(("bf", "0"), ("g", "1"))),
    "matroska": Encoding("libx264", "indexed", ".mkv"),
    "MPEG transport stream": Encoding("libx264", "seek", ".ts"),
    "open GOP": Encoding("libx264", "seek", options=(("x264-params", "open-gop=1"), ("g", "24"))),
    "intra refresh": Encoding("libx264", "seek", options=REFRESH, noisy=True),
    "intra refresh, matroska": Encoding("libx264", "seek", ".mkv", REFRESH, noisy=True),
    "intra refresh, stream": Encoding("libx264", "seek", ".ts", REFRESH, noisy=True),
    "flash": Encoding("libx264", "seek", ".flv"),
    "variable frame rate": Encoding("libx264", "indexed", irregular=True),
    "odd size": Encoding("libx264", "indexed", pixels="yuv444p", size=(65, 131)),
    "10 bit": Encoding("libx264", "indexed", pixels="yuv420p10le"),
    "H.265": Encoding("libx265", "seek", options=(("x265-params", "log-level=0:keyint=24"),)),
    "VP9": Encoding("libvpx-vp9", "seek", ".webm", (("cpu-used", "8"), ("g", "40"))),
    "AV1": Encoding("libsvtav1", "seek", ".mp4", (("preset", "12"), ("g", "40"))),
    "MPEG-4 in AVI": Encoding("mpeg4", "seek", ".avi", (("bf", "2"),)),
}
# One of each way to read, and the codecs that people have most.
QUICK_ENCODINGS = ("H.264", "MPEG transport stream", "open GOP", "variable frame rate", "VP9")


def write_numbered(path: Path, count: int, encoding: Encoding = ENCODINGS["H.264"]) -> None:
    """Write frames that show their number as eight black or white bars, 25 a second."""
    height, width = encoding.size
    noise = np.random.default_rng(0).integers(0, 36, (height, width, 1), np.uint8)
    with _same_priority(), av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoding.codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, encoding.pixels
        stream.options = dict(encoding.options)
        for number in range(count):
            bits = [(number >> bit) & 1 for bit in range(8)]
            row = np.repeat(np.array(bits, np.uint8) * 200 + 20, -(-width // 8))[:width]
            picture = np.broadcast_to(row[None, :, None], (height, width, 3))
            if encoding.noisy:  # told once: a decoder that begins later than that lacks it
                picture = picture + noise
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if encoding.irregular:
                frame.time_base, frame.pts = Fraction(1, 1000), irregular_time(number)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@contextmanager
def _same_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does where it may: real-time priority over all else on the machine."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def turn(path: Path) -> None:
    """Turn an mp4 a quarter clockwise in its track header, as phones do (ISO 14496-12)."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + matrix + content[at + 36 :])


def irregular_time(number: int) -> int:
    """Milliseconds at which frame `number` of a variable-rate clip is shown."""
    return 40 * number + (120 * (number // 10))


def read_numbers(frames: NDArray[np.uint8]) -> list[int]:
    width = frames.shape[2]
    bar = -(-width // 8)
    bits = frames[:, 32, bar // 2 :: bar, 0] > 120
    return [int(n) for n in (bits * (1 << np.arange(8))).sum(1)]


def sequential(path: Path) -> NDArray[np.uint8]:
    """All frames by another decoder, in sequence."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def access_paths(count: int) -> dict[str, NDArray[np.int64]]:
    """Return orders in which a video of `count` frames may be asked for."""
    rng = np.random.default_rng(0)
    return {
        "sequence": np.arange(count),
        "strided": np.arange(0, count, 4),
        "from the middle": np.arange(count // 2, count),
        "reversed": np.arange(count)[::-1],
        "random with repeats": rng.integers(0, count, 40),
        "last": np.array([count - 1]),
        "first after last": np.array([count - 1, 0]),
    }
