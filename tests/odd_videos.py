"""Videos as people have them: joined, with clocks that jump, of changing sizes."""

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

SIZE = 96, 64
FPS = 25


def pictures(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Iterator[NDArray[Any]]:
    """Yield pictures of which no two are alike."""
    width, height = size
    for number in range(seed, seed + count):
        picture = np.random.default_rng(number // 16).integers(0, 200, (height, width, 3), np.uint8)
        row = np.repeat([(number >> bit & 1) * 200 + 20 for bit in range(8)], -(-width // 8))
        picture[: height // 2] = row[None, :width, None]
        yield picture


def write_clip(
    path: Path,
    count: int = 100,
    first_s: float = 0.0,
    *,
    codec: str = "libx264",
    fps: int = FPS,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
    encoder: dict[str, str] | None = None,
    **container: Any,
) -> Path:
    """Write a clip of one stream that begins at `first_s`."""
    with av.open(str(path), "w", **container) as file:
        stream = add_stream(file, codec, size, fps, encoder)
        for number, picture in enumerate(pictures(count, size, seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=stream.pix_fmt
            )
            frame.time_base, frame.pts = Fraction(1, fps), round(first_s * fps) + number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def add_stream(
    file: Any, codec: str, size: tuple[int, int], fps: int, encoder: dict[str, str] | None
) -> Any:
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8", "ffv1": "yuv420p"}.get(codec, "yuv420p")
    stream = file.add_stream(codec, rate=fps)
    stream.width, stream.height = size
    stream.pix_fmt = pixels
    quiet = {"x265-params": "log-level=0"} if codec == "libx265" else {}
    stream.options = quiet | (encoder or {})
    return stream


def join(path: Path, *parts: Path) -> Path:
    """Write the parts' bytes one after the other, as `cat` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def joined(path: Path, lengths: Sequence[int], starts_s: Sequence[float], **settings: Any) -> Path:
    """Write recordings of these lengths that begin at these times, joined by `cat`."""
    parts, seed = [], 0
    for place, (count, start_s) in enumerate(zip(lengths, starts_s, strict=True)):
        part = path.with_name(f"part{place}-{path.name}")
        parts.append(write_clip(part, count, start_s, seed=seed, **settings))
        seed += count
    join(path, *parts)
    for part in parts:
        part.unlink()
    return path


def write_streams(
    path: Path, sizes: Sequence[tuple[int, int]], default: int | None = None, count: int = 50
) -> Path:
    """Write several video streams into one file; one of them may be the default one."""
    with av.open(str(path), "w") as file:
        streams = [add_stream(file, "libx264", size, FPS, None) for size in sizes]
        for place, stream in enumerate(streams):
            if default is not None:
                stream.disposition = Disposition.default.value if place == default else 0
        shown = [pictures(count, size, 100 * n) for n, size in enumerate(sizes)]
        for group in zip(*shown, strict=True):
            for stream, picture in zip(streams, group, strict=True):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    return path


def write_sizes(path: Path, codec: str, sizes: Sequence[tuple[int, int]], count: int = 30) -> Path:
    """Write one stream whose pictures change their size: packets of one encoder after another."""
    packets = []
    for place, size in enumerate(sizes):
        made = write_clip(
            path.with_name(f"part{place}.mkv"),
            count,
            place * count / FPS,
            codec=codec,
            size=size,
            seed=place * count,
        )
        with av.open(str(made)) as part:
            packets += [
                (bytes(p), p.pts, p.dts, p.is_keyframe)
                for p in part.demux(video=0)
                if p.pts is not None
            ]
        made.unlink()
    with av.open(str(path), "w") as file:
        stream = add_stream(file, codec, sizes[0], FPS, None)
        for data, pts, dts, is_key in packets:
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts, packet.dts, packet.is_keyframe = pts, dts, is_key
            file.mux(packet)
    return path


def matroska_blocks(content: bytes) -> list[tuple[str, int, int]]:
    """Return (kind, begin, end) of every cluster's time and every block's data."""
    found = []

    def number(at: int, keep: bool) -> tuple[int, int]:
        length = 9 - content[at].bit_length()
        value = int.from_bytes(content[at : at + length], "big")
        return (value if keep else value & ((1 << 7 * length) - 1)), at + length

    def walk(at: int, end: int) -> None:
        while at < end:
            name, at = number(at, keep=True)
            size, at = number(at, keep=False)
            if name in (0x18538067, 0x1F43B675, 0xA0):  # Segment, Cluster, BlockGroup
                walk(at, min(at + size, end))
            elif name in (0xE7, 0xA3, 0xA1):
                found.append(("time" if name == 0xE7 else "block", at, at + size))
            at += size

    walk(0, len(content))
    return found


def change_matroska_times(path: Path, change: Callable[[int, int], int]) -> Path:
    """Set the time of every cluster (place, milliseconds) to what `change` returns."""
    content = bytearray(path.read_bytes())
    clusters = [part for part in matroska_blocks(bytes(content)) if part[0] == "time"]
    for place, (_, begin, end) in enumerate(clusters):
        new = change(place, int.from_bytes(content[begin:end], "big"))
        content[begin:end] = new.to_bytes(end - begin, "big")
    path.write_bytes(content)
    return path


def untimed(path: Path, count: int) -> Path:
    """Set the first blocks' times below 0, which no reader accepts."""
    content = bytearray(path.read_bytes())
    blocks = [part for part in matroska_blocks(bytes(content)) if part[0] == "block"]
    for place, (_, begin, _) in enumerate(blocks[:count]):
        content[begin + 1 : begin + 3] = struct.pack(">h", -40 * (count - place))
    path.write_bytes(content)
    return path


def sequential_frames(path: Path) -> NDArray[np.uint8]:
    """Return all frames of sequential decoding, one thread, scaled to the first one's size.

    Of several streams the default one, else the first.
    """
    with av.open(f"file:{path}") as container:
        streams = container.streams.video
        chosen = next((s for s in streams if s.disposition & Disposition.default), streams[0])
        chosen.thread_count = 1
        size: tuple[int, int] | None = None
        frames = []
        for frame in container.decode(chosen):
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                frame = frame.reformat(*size, format="rgb24", interpolation="BICUBIC")
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)
