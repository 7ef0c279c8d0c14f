"""Import features that other networks computed, as activations that heads can be trained on.

    python extract/features.py --name i3d --features data/i3d --stride 4 --offset 8 \
        --annotations data/thumos14/thumos_14_anno.json --cache data/i3d_cache

A file has its video's name (.npy, .npz, .pt, .pkl) and a row of numbers every `stride` frames; row
0 stands for the frames around `offset`. Rows of several folders are concatenated. Features that are
in the cache already are kept. They cannot be used for end-to-end training, which needs the pixels.
"""

import argparse
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cache.address import DTYPES, Dtype, FingerprintInfo, VideoInfo
from cache.fingerprint import chain
from cache.store import open_cache
from configs import cli
from configs.messages import truncated
from evaluate.annotations import Video, read_annotations
from extract.activations.stored import Cached
from extract.backbone.imported import about, imported_name
from extract.feature_files import SUFFIXES, read_array
from extract.identity.digest import video_digest
from extract.sampling.spans import Span, whole_video_window
from extract.sampling.units import CLIP_FRAMES, TUBELET
from extract.sampling.windows import SamplingConfig

Layout = Literal["tc", "ct"]
UNEQUAL = 2
"""Rows by which the files of one video may differ: networks end at slightly different frames."""


@dataclass(frozen=True)
class FeatureSource:
    """The feature files of one video, one from every folder, and the video's frame rate."""

    name: str
    files: tuple[Path, ...]
    fps: float
    frames: int | None


@dataclass(frozen=True)
class ImportRequest:
    """The arguments of an import, as on the command line."""

    name: str
    features: Sequence[Path]
    cache: str
    stride: int
    offset: float
    annotations: Path | None
    info_csv: Sequence[Path]
    fps: float | None
    layout: Layout | None
    key: str | None
    dtype: Dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--name", required=True, help="their name, for backbone.imported")
    parser.add_argument("--features", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--cache", required=True, help="folder or URL of the store to write")
    parser.add_argument("--stride", type=int, required=True, help="frames from row to row")
    parser.add_argument("--offset", type=float, default=0.0, help="frame that row 0 stands for")
    parser.add_argument("--annotations", type=Path, help="file of the videos and their frame rates")
    parser.add_argument("--info_csv", type=Path, nargs="+", default=[], help="video, fps, count")
    parser.add_argument("--fps", type=float, help="frame rate of all videos")
    parser.add_argument("--layout", choices=["tc", "ct"], help="axes; default: what fits all files")
    parser.add_argument("--key", help="name of the array in files that hold several")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    args = parser.parse_args()
    import_features(ImportRequest(**vars(args)))


def import_features(request: ImportRequest) -> None:
    """Import all files into a store.

    Raises:
        ValueError: arguments are wrong, or some files are bad, which are listed after the others
            were imported.
    """
    if request.stride < TUBELET or request.stride % TUBELET:
        raise ValueError(
            f"--stride {request.stride} must be even; for an odd one double --stride, --offset and "
            "--fps, and sampling.snippet_stride with them"
        )
    if request.offset < 0 or (request.fps is not None and request.fps <= 0):
        raise ValueError("--offset must not be negative, and --fps must be above 0")
    videos: dict[str, Video] = {}
    if request.annotations:
        videos = read_annotations(request.annotations, info_csv=request.info_csv).videos
    sources = find_sources(request.features, videos, request.fps)
    layout, width = request.layout or infer_layout(sources, request.key), 0
    problems: list[str] = []
    with open_cache(request.cache) as store, store.writer() as writer:
        for source in tqdm(sources, desc="features", unit="video"):
            try:
                arrays = [read_array(path, request.key) for path in source.files]
                rows = join_rows(source, arrays, layout)
                if width and rows.shape[1] != width:
                    raise ValueError(
                        f"{source.files[0]}: {rows.shape[1]} channels, where others have {width}"
                    )
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            if not width:
                width = rows.shape[1]
                of = about(request.name, width)
                (fingerprint,) = chain(of, [{}])
                place = Cached(store, "features", fingerprint, request.dtype)
                origin = "\n".join(str(folder.resolve()) for folder in request.features)
                writer.describe(FingerprintInfo(fingerprint, "features", origin, of))
            span = make_span(source, len(rows), request.name, request.stride, request.offset)
            writer.describe(span.video)
            if not place.contains(span):
                writer.write(place.address(span), pad_rows(rows, span.rows))
    done, absent = len(sources) - len(problems), len(videos.keys() - {s.name for s in sources})
    if absent:
        print(f"warning: {absent:,} of {len(videos):,} annotated videos have no file of features")
    if done:
        print(
            f"{done:,} of {len(sources):,} videos have features '{request.name}' of {width} "
            f"channels in {request.cache}: set backbone.mode imported, backbone.imported "
            f"{request.name}, backbone.imported_width {width}, sampling.snippet_stride "
            f"{request.stride} and sampling.scale_factor {TUBELET}, and train with train/heads.py"
        )
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(sources)} videos have none:\n  "
            + "\n  ".join(truncated(problems))
        )


def find_sources(
    folders: Sequence[Path], videos: dict[str, Video], fps: float | None
) -> list[FeatureSource]:
    """Return the feature files of every video.

    Args:
        videos: those to find files of; if empty, every file of the first folder is one's.

    Raises:
        ValueError: there are no files, or frame rates or files of other folders are missing.
    """
    found: list[dict[str, Path]] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--features: there is no folder {folder}")
        files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
        found.append({path.stem: path for path in files})
        if len(found[-1]) < len(files):
            raise ValueError(f"--features: {folder} has two files of one name; remove one")
    names = [name for name in (videos or found[0]) if name in found[0]]
    if not names:
        raise ValueError(
            f"--features: {folders[0]} has no file ({', '.join(SUFFIXES)}) with the name of a video"
        )
    lacking = [n for n in names if any(n not in files for files in found[1:])]
    if lacking:
        raise ValueError(f"--features: not in every folder: {', '.join(truncated(lacking))}")
    rates = {n: fps or (videos[n].fps if n in videos else None) for n in names}
    unknown = [n for n in names if not rates[n]]
    if unknown:
        raise ValueError(
            f"the frame rate of {len(unknown)} videos is not known "
            f"({', '.join(truncated(unknown))}): give --annotations with durations and frames, "
            "--info_csv, or --fps"
        )
    return [
        FeatureSource(
            name,
            tuple(files[name] for files in found),
            rate,
            videos[name].frames if name in videos else None,
        )
        for name, rate in rates.items()
        if rate
    ]


def infer_layout(sources: Sequence[FeatureSource], key: str | None) -> Layout:
    """Return which axis is time: the one whose length differs between videos.

    Raises:
        ValueError: none or both differ.
    """
    first: tuple[int, ...] = ()
    for source in sources:
        with suppress(ValueError, OSError):  # reported when the file is imported
            shape = read_array(source.files[0], key).shape
            first = first or shape
            if shape != first and first[1] == shape[1]:
                return "tc"
            if shape != first and first[0] == shape[0]:
                return "ct"
    raise ValueError(
        f"{sources[0].files[0].parent}: the arrays do not show which axis is time (one is "
        f"{' x '.join(map(str, first)) or 'no array'}): give --layout tc or ct"
    )


def join_rows(
    source: FeatureSource, arrays: Sequence[NDArray[np.floating]], layout: Layout
) -> NDArray[np.floating]:
    """Return the rows [T, C] of all files of a video, concatenated along the channels."""
    rows = [array if layout == "tc" else array.T for array in arrays]
    lengths = [len(array) for array in rows]
    if max(lengths) - min(lengths) > UNEQUAL:
        raise ValueError(
            f"{source.name}: its files have {' and '.join(map(str, lengths))} rows; they are not "
            "of one stride"
        )
    return np.concatenate([array[: min(lengths)] for array in rows], 1)


def make_span(source: FeatureSource, rows: int, name: str, stride: int, offset: float) -> Span:
    """Return the span of a video's features: the whole video, as far as there are rows.

    The digest covers the feature files and the frames that they stand for.
    """
    frames = rows * stride
    identity = [*map(video_digest, source.files), stride, offset, source.fps, source.frames]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    times = None
    if offset or source.frames != frames:
        times = (np.arange(frames + 1, dtype=np.float64) + offset) / source.fps
    size = sum(path.stat().st_size for path in source.files)
    video = VideoInfo(digest, imported_name(name, source.name), size, frames, source.fps, times)
    sampling = SamplingConfig(window_size=CLIP_FRAMES, scale_factor=TUBELET, snippet_stride=stride)
    window = whole_video_window(frames, sampling)
    return Span(video, source.files[0], window, "forward", "video")


def pad_rows(rows: NDArray[np.floating], length: int) -> torch.Tensor:
    """Return the rows padded to a length by repeating the last one."""
    return torch.from_numpy(np.pad(rows, ((0, length - len(rows)), (0, 0)), mode="edge"))


if __name__ == "__main__":
    cli.run(main)
