"""Import features that other networks computed, as activations that heads can be trained on.

    python extract/features.py --name i3d --features data/i3d --stride 4 --offset 8 \
        --annotations data/thumos14/thumos_14_anno.json --cache data/i3d_cache

A file has its video's name (.npy, .npz, .pt, .pkl) and a row of numbers every `stride` frames; row
0 stands for the frames around `offset`. Rows of several folders are concatenated. Features that are
in the cache already are kept. All files are read first, and what is wrong with any is listed at
once: also rows that do not last as long as their video is annotated to. They cannot be used for
end-to-end training, which needs the pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from cache.dtypes import Dtype
from configs import cli
from configs.messages import truncated
from configs.options import ScriptParser
from configs.progress import ProgressBar
from evaluate.annotations import Video, read_annotations
from extract.identity.digest import video_digest
from extract.settings.sampling import SamplingConfig
from extract.settings.units import CLIP_FRAMES, TUBELET

if TYPE_CHECKING:
    import torch

    from extract.feature_folder import FeatureFolder, FeatureSource, Layout
    from extract.sampling.spans import Span


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
    parser = ScriptParser(__doc__)
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
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float16")
    args, _ = parser.parse()
    import_features(ImportRequest(**vars(args)))


def import_features(request: ImportRequest) -> None:
    """Import all files into a store.

    Raises:
        ValueError: arguments are wrong, or some files are bad, which are listed after the others
            were imported.
    """
    from extract.feature_folder import survey_features

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
    sources, lacking, of = find_sources(request.features, videos, request.fps)
    seen = survey_features(sources, request.layout, request.key, request.stride, request.dtype)
    seen.general[:0] = lacking
    if seen.layout is not None and seen.usable:
        import_usable(request, seen.layout, seen)
    done, absent = len(seen.usable), len(videos) and len(videos) - of
    if absent:
        print(f"warning: {absent:,} of {len(videos):,} annotated videos have no file of features")
    if done:
        print(
            f"{done:,} of {of:,} videos have features '{request.name}' of {seen.width} "
            f"channels in {request.cache}: set backbone.mode imported, backbone.imported "
            f"{request.name}, backbone.imported_width {seen.width}, sampling.snippet_stride "
            f"{request.stride} and sampling.scale_factor {TUBELET}, and train with train/heads.py"
        )
    if done < of:
        raise ValueError(seen.text(of))


def import_usable(request: ImportRequest, layout: Layout, seen: FeatureFolder) -> None:
    """Write the features of all sources without a problem into the store."""
    from cache.address import FingerprintInfo
    from cache.fingerprint import chain_fingerprints
    from cache.store import open_cache
    from extract.activations.stored import Cached
    from extract.backbone.imported import describe_imported
    from extract.feature_files import read_array

    of = describe_imported(request.name, seen.width)
    (fingerprint,) = chain_fingerprints(of, [{}])
    origin = "\n".join(str(folder.resolve()) for folder in request.features)
    with open_cache(request.cache) as store, store.writer() as writer:
        place = Cached(store, "features", fingerprint, request.dtype)
        writer.describe(FingerprintInfo(fingerprint, "features", origin, of))
        for source in ProgressBar(seen.usable, desc="features", unit="video"):
            of_source = source, seen.rows[source.name], request.name
            span = make_span(*of_source, request.stride, request.offset)
            writer.describe(span.video)
            if not place.contains(span):
                arrays = [read_array(path, request.key) for path in source.files]
                writer.write(place.address(span), pad_rows(join_rows(arrays, layout), span.rows))


def find_sources(
    folders: Sequence[Path], videos: dict[str, Video], fps: float | None
) -> tuple[list[FeatureSource], list[str], int]:
    """Return the feature files of videos, why others cannot be used, and how many there are.

    Args:
        videos: those to find files of; if empty, every file of the first folder stands for one.

    Raises:
        ValueError: there are no files.
    """
    from extract.feature_files import SUFFIXES
    from extract.feature_folder import FeatureSource

    found: list[dict[str, Path]] = []
    problems: list[str] = []
    twice: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--features: there is no folder {folder}")
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and files.setdefault(path.stem, path) != path:
                twice.add(path.stem)
                problems.append(
                    f"{folder} has two files of one name, {files[path.stem].name} and {path.name}; "
                    "remove one"
                )
        found.append(files)
    names = [name for name in (videos or found[0]) if name in found[0]]
    if not names:
        raise ValueError(
            f"--features: {folders[0]} has no file ({', '.join(SUFFIXES)}) with the name of a video"
        )
    lacking: set[str] = set()
    for folder, files in zip(folders[1:], found[1:], strict=True):
        if missing := [name for name in names if name not in files]:
            lacking.update(missing)
            problems.append(f"not in every folder: {folder} has no {', '.join(truncated(missing))}")
    rates = {n: fps or (videos[n].fps if n in videos else None) for n in names}
    if unknown := [name for name in names if not rates[name]]:
        problems.append(
            f"the frame rate of {len(unknown)} videos is not known "
            f"({', '.join(truncated(unknown))}): give --annotations with durations and frames, "
            "--info_csv, or --fps"
        )
    sources = [
        FeatureSource(
            name,
            tuple(files[name] for files in found),
            rate,
            videos[name].frames if name in videos else None,
            find_duration(videos.get(name)),
        )
        for name, rate in rates.items()
        if rate and name not in twice | lacking
    ]
    return sources, problems, len(names)


def find_duration(video: Video | None) -> float | None:
    """Return how long a video lasts, as far as its annotations say."""
    if video is None:
        return None
    counted = video.frames / video.fps if video.frames and video.fps else None
    return counted if video.duration_s is None else video.duration_s


def join_rows(arrays: Sequence[NDArray[np.floating]], layout: Layout) -> NDArray[np.floating]:
    """Return the rows [T, C] of all files of a video, concatenated along the channels."""
    rows = [array if layout == "tc" else array.T for array in arrays]
    shortest = min(map(len, rows))
    return np.concatenate([array[:shortest] for array in rows], 1)


def make_span(source: FeatureSource, rows: int, name: str, stride: int, offset: float) -> Span:
    """Return the span of a video's features: the whole video, as far as there are rows.

    The digest covers the feature files and the frames that they stand for.
    """
    from cache.address import VideoInfo
    from extract.backbone.imported import imported_name
    from extract.sampling.spans import Span, whole_video_window

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
    import torch

    return torch.from_numpy(np.pad(rows, ((0, length - len(rows)), (0, 0)), mode="edge"))


if __name__ == "__main__":
    cli.run(main)
