"""A proxy of a video: the same frames at the same times, small and quick to decode from anywhere.

The frames that are written are those that `VideoReader` returns, upright, resized with the filter
that frames of the source would be resized with for the backbone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from torchvision.transforms.v2 import functional

from configs.atomic import atomic_path
from extract.identity.digest import video_digest
from extract.transcoding.encode import (
    EncoderSettings,
    Timeline,
    make_timeline,
    read_stamp,
    split_stretches,
    write_mp4,
)
from extract.video.index import Progress, VideoError
from extract.video.indexing import video_index
from extract.video.reader import VideoReader

SHORT_SIDES = 112, 182  # from the smallest input in use to what training crops 160 px from
# Raise VERSION when the same settings give other files.
STAMP = "palindrome: proxy"
VERSION = 1
# As fast to write as possible: slower presets save nothing in groups this short, and neither
# B-frames nor x264's "fastdecode" make them faster to read. Without lookahead (which reads memory
# beside frames of some widths) the same source gives the same bytes, so that the activations of a
# proxy that was deleted and made again are still found.
OPTIONS = {"preset": "veryfast", "x264-params": "mbtree=0:rc-lookahead=0"}
TAGS = {"colorspace": Colorspace.ITU601.value, "color_range": ColorRange.MPEG.value}


@dataclass(frozen=True)
class ProxyConfig:
    """Settings of proxies.

    Args:
        short_side: in pixels, even; smaller videos keep their size.
        gop: frames from one keyframe to the next.
        crf: x264's quality, 1 (best) to 51.
        reverse: reverse the order of the frames.
    """

    short_side: int
    gop: int = 8
    crf: int = 20
    reverse: bool = False

    def __post_init__(self) -> None:
        least, most = SHORT_SIDES
        if not least <= self.short_side <= most or self.short_side % 2:
            raise ValueError(
                f"--short_side: {self.short_side} is not an even number from {least} to {most}"
            )
        if not 1 <= self.gop <= 250:
            raise ValueError(f"--gop: {self.gop} is not 1 to 250 frames")
        if not 1 <= self.crf <= 51:
            raise ValueError(f"--crf: {self.crf} is not 1 (best) to 51 (worst)")


def is_current_proxy(source: Path, target: Path, config: ProxyConfig) -> bool:
    """Return whether `target` is what `write_proxy` makes of the source as it is now.

    Raises:
        ValueError: it is not a proxy, and so must not be replaced.
        OSError: the source cannot be read.
    """
    if not target.exists():
        return False
    stamp = read_stamp(target) or ""
    if not stamp.startswith(STAMP):
        raise ValueError(
            f"{target}: is not a proxy and would be replaced; remove it or choose another --out"
        )
    return stamp == _make_stamp(source, config)


def proxy_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return a proxy's width and height: even, as H.264 with subsampled colours requires."""
    short = min(width, height)
    wanted = min(short, short_side)
    across, down = (max(2, side * wanted // short // 2 * 2) for side in (width, height))
    return across, down


def write_proxy(
    source: Path,
    target: Path,
    config: ProxyConfig,
    progress: Progress = lambda frames: None,
) -> None:
    """Write a video small, upright and without sound; aside, then renamed.

    Frame i of the proxy is frame i of sequential decoding at the same time from the first one;
    with `reverse` it is frame N − 1 − i at t_last − t.

    Args:
        target: an .mp4 file.
        progress: called with the number of frames that were done; with 0 at other steps.

    Raises:
        VideoError: the source cannot be decoded, or mp4 cannot hold its times.
        OSError: the file cannot be written.
    """
    reader = VideoReader(source, progress)
    encoder = _encoder_settings(reader.index.upright_size, config)
    line = make_timeline(reader.index, config.reverse)
    # Turned round, the first stretch becomes the last: the shorter one, in either direction.
    first = len(reader) % config.gop if config.reverse else 0
    parts = split_stretches(_shrink_pictures(reader, encoder), config.gop, first)
    with atomic_path(target) as aside:
        stamp = _make_stamp(source, config)
        write_mp4(aside, parts, encoder, line, stamp, config.reverse, progress=progress)
        _check_exact(source, aside, line, progress)


def _encoder_settings(size: tuple[int, int], config: ProxyConfig) -> EncoderSettings:
    """Return the encoder of a proxy of pictures of this height and width."""
    width, height = proxy_size(*size[::-1], config.short_side)
    return EncoderSettings(
        "libx264", "yuv420p", width, height, OPTIONS | {"crf": str(config.crf)}, TAGS
    )


def _make_stamp(source: Path, config: ProxyConfig) -> str:
    settings = f"short side {config.short_side}, gop {config.gop}, crf {config.crf}"
    turned = ", reversed" if config.reverse else ""
    digest, size = video_digest(source), source.stat().st_size
    return f"{STAMP} {VERSION}, {settings}{turned}, of {digest}, {size} bytes"


def _shrink_pictures(reader: VideoReader, encoder: EncoderSettings) -> Iterator[av.VideoFrame]:
    for chunk in reader.chunks(np.arange(len(reader))):
        video = torch.from_numpy(chunk).permute(0, 3, 1, 2)
        small = functional.resize(video, [encoder.height, encoder.width], antialias=True)
        for picture in small.permute(0, 2, 3, 1).contiguous().numpy():
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            yield frame.reformat(
                format=encoder.pixels,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
            )


def _check_exact(source: Path, made: Path, line: Timeline, progress: Progress) -> None:
    """Raise VideoError unless the file has these times and access to it by number is exact."""
    index = video_index(made, progress)
    ticks = line.unit / index.time_base
    times = line.times * ticks.numerator
    exact = ticks.denominator == 1 and np.array_equal(index.pts - index.pts[0], times)
    if not exact or index.access != "indexed":
        raise VideoError(f"{source}: its frames' times do not fit an mp4 file")
