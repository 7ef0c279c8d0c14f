"""Transcode video files to small proxies, reversed files or reversed proxies, with annotations.

    python extract/transcode.py --short_side 160 --videos data/demo/videos --out data/proxies \
        --annotations data/demo/annotations.json
    python extract/transcode.py --reverse --videos data/demo/videos --out data/demo/reversed \
        --annotations data/demo/annotations.json

OUT gets one .mp4 file per video, without sound, and the annotation file under its own name. Proxies
(--short_side) have every frame of their source at its time, smaller, with a keyframe every --gop
frames; point data.videos at OUT to train on them. OUT/proxies.json says what they save. They are
made again when their source or the settings have changed. Reversed files (--reverse alone) are
lossless (--crf N: smaller, and no longer exact); they are for programs that read videos one way
only: Palindrome itself reads the same files in both directions. The same command resumes an
interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from configs import cli
from configs.atomic import write_text
from configs.options import ScriptParser
from configs.system import count_cores
from evaluate.annotations import read_annotations
from evaluate.datasets.fields import get_field, read_json

if TYPE_CHECKING:
    from extract.transcoding.proxy import ProxyConfig
    from extract.video.index import VideoIndex
    from train.data.items import VideoItem

TINY = 1e-6  # frames
REPORT = "proxies.json"


@dataclass(frozen=True)
class TranscodeRequest:
    """The arguments of a transcoding run, as on the command line."""

    short_side: int | None
    gop: int | None
    reverse: bool
    videos: Path
    out: Path
    annotations: Path | None
    info_csv: Sequence[Path]
    crf: int | None
    processes: int


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--short_side", type=int, help="write proxies: pixels, even, 112 to 182")
    parser.add_argument("--gop", type=int, help="a proxy's frames from keyframe to keyframe (8)")
    parser.add_argument("--reverse", action="store_true", help="reverse the videos")
    parser.add_argument("--videos", type=Path, required=True, help="folder of video files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--annotations", type=Path, help="their annotation file")
    parser.add_argument(
        "--info_csv", type=Path, nargs="+", default=[], help="tables with video, fps and count"
    )
    parser.add_argument(
        "--crf", type=int, help="x264's quality, 1 to 51; default: 20, reversed files lossless"
    )
    parser.add_argument("--processes", type=int, default=count_cores(), help="files at once")
    args, _ = parser.parse()
    problems = transcode_videos(TranscodeRequest(**vars(args)))
    if problems:
        causes = "\n  ".join(problems)
        what = "reversed" if args.reverse else "made small"
        sys.exit(f"error: {len(problems)} videos could not be {what}:\n  {causes}")


def transcode_videos(request: TranscodeRequest) -> list[str]:
    """Write all files and return why videos could not be transcoded, a line for each."""
    from extract.transcoding.encode import SUFFIX
    from extract.transcoding.making import FileToMake, make_files
    from extract.transcoding.proxy import is_current_proxy, write_proxy
    from extract.transcoding.reverse import is_current_reversal, write_reversed
    from extract.video.index import VideoError
    from extract.video.probe import probe

    config = _proxy_config(request)
    sources = _list_videos(request.videos)
    annotations = request.annotations
    if annotations:  # errors in it are raised before the long work
        read_annotations(annotations, info_csv=request.info_csv, ignore_labels=())
        if request.reverse:
            _read_database(annotations)
    request.out.mkdir(parents=True, exist_ok=True)

    indexes: dict[str, VideoIndex] = {}
    problems: dict[str, str] = {}
    paths = list(sources.values())
    for path, found in zip(paths, probe(paths), strict=True):
        if isinstance(found, VideoError):
            problems[path.stem] = str(found)
        else:
            indexes[path.stem] = found
    targets = {name: request.out / (name + SUFFIX) for name in indexes}
    threads = max(1, count_cores() // min(request.processes, max(1, len(indexes))))
    to_make = []
    for name, target in targets.items():
        source = sources[name]
        try:
            if config is not None:
                finished = is_current_proxy(source, target, config)
                make: Callable[..., object] = partial(write_proxy, source, target, config)
            else:
                finished = is_current_reversal(source, target, request.crf)
                make = partial(write_reversed, source, target, request.crf, threads)
            if not finished:
                frames = len(indexes[name].pts)
                to_make.append(FileToMake(source, source.stat().st_size, frames, make))
        except (ValueError, OSError) as error:
            problems[name] = str(error)
    what = "reversed videos" if config is None else "proxies"
    results = make_files(to_make, request.processes, f"writing {what}")
    for file, result in zip(to_make, results, strict=True):
        if isinstance(result, VideoError):
            problems[file.source.stem] = str(result)
    done = [sources[name] for name in sources if name not in problems]
    print(f"{request.out}: {len(done)} {what}, {len(to_make)} of them to make")
    as_rgb = sum(result is True for result in results)
    if as_rgb and request.crf is None:
        print(
            f"{as_rgb} of them hold RGB: only then does VideoReader give the source's exact pixels"
        )
    if annotations:
        _write_annotations(annotations, request, {path: indexes[path.stem] for path in done})
    if config is not None:
        _write_report(request.out, config, [(path, targets[path.stem]) for path in done], problems)
    return list(problems.values())


def _proxy_config(request: TranscodeRequest) -> ProxyConfig | None:
    """Return the settings of proxies, None for reversed files.

    Raises:
        ValueError: arguments are wrong or do not go together.
    """
    from extract.transcoding.proxy import ProxyConfig

    config = None
    if request.short_side is not None:
        given = {name: getattr(request, name) for name in ("gop", "crf")}
        given = {name: value for name, value in given.items() if value is not None}
        config = ProxyConfig(request.short_side, reverse=request.reverse, **given)
    elif not request.reverse:
        raise ValueError("nothing to write: give --short_side N for proxies, --reverse, or both")
    elif request.gop is not None:
        raise ValueError("--gop: is for proxies; give --short_side, too")
    elif request.crf is not None and not 1 <= request.crf <= 51:
        raise ValueError(
            f"--crf: {request.crf} is not 1 (best) to 51 (worst); leave out for lossless"
        )
    if request.processes < 1:
        raise ValueError(f"--processes: {request.processes} is not at least 1")
    if request.out.resolve() == request.videos.resolve():
        raise ValueError("--out: choose a folder other than --videos, whose files are not replaced")
    annotations = request.annotations
    if annotations and (request.out / annotations.name).resolve() == annotations.resolve():
        raise ValueError(f"--out: {annotations} lies there and would be replaced; choose another")
    if annotations and annotations.is_dir():
        raise ValueError(
            f"--annotations: {annotations} is a folder; leave it out: proxies keep their videos' "
            "names and times, and only a JSON file can be reversed"
        )
    if config is not None and annotations and annotations.name == REPORT:
        raise ValueError(f"--annotations: {REPORT} is the report's name; rename {annotations}")
    for table in request.info_csv:
        if not table.is_file():
            raise ValueError(f"--info_csv: there is no file {table}")
    return config


def _list_videos(folder: Path) -> dict[str, Path]:
    """Return the video files of a folder by name; raise ValueError if there are none."""
    from extract.video.files import video_files

    if not folder.is_dir():
        raise ValueError(f"--videos: there is no folder {folder}")
    files = video_files(folder, "--videos")
    if not files:
        raise ValueError(f"--videos: {folder} holds no video")
    return files


def _write_report(
    out: Path, config: ProxyConfig, pairs: list[tuple[Path, Path]], problems: Mapping[str, str]
) -> None:
    """Print what the proxies save, and write it to OUT/proxies.json."""
    from extract.transcoding.savings import Savings, measure_savings
    from extract.video.index import VideoError

    found = Savings(0, 0, 0)
    try:
        found = measure_savings(pairs, config.short_side) if pairs else found
    except (VideoError, OSError) as error:  # a source has vanished since
        print(f"warning: what is saved is not measured: {error}")
    content = {"settings": asdict(config), **found.to_dict(), "problems": dict(problems)}
    write_text(out / REPORT, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(found.to_markdown())
    if found.saved < 0:
        print("warning: the videos are smaller than their proxies: train on the videos themselves")


def _write_annotations(
    annotations: Path, request: TranscodeRequest, done: Mapping[Path, VideoIndex]
) -> None:
    """Write the annotation file for the transcoded videos: mirrored, or unchanged."""
    from train.data.video_files import make_item

    text = annotations.read_text(encoding="utf-8-sig")
    if request.reverse:
        items = {path.stem: make_item(path, found) for path, found in done.items()}
        content, warnings = reverse_annotations(annotations, items, request.info_csv)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for what, count in warnings.items():
            print(f"warning: {count} {what}")
    write_text(request.out / annotations.name, text)


def reverse_annotations(
    path: Path, items: Mapping[str, VideoItem], info_csv: Sequence[Path] = ()
) -> tuple[dict[str, Any], Counter[str]]:
    """Return an annotation file's content for the reversed videos, and counts by warning.

    Labels and everything else stay as they are; videos that are not in `items` (by name) are
    omitted. Only the duration of a video with uneven frames is raised to the file's.

    Raises:
        ValueError: the file is malformed.
    """
    videos = read_annotations(path, info_csv=info_csv, ignore_labels=()).videos
    content = _read_database(path)
    warnings: Counter[str] = Counter()
    database = {}
    for name, record in content["database"].items():
        if name not in items:
            warnings["videos of the annotations have no reversed file and are omitted"] += 1
            continue
        item = items[name]
        duration_s = videos[name].duration_s or item.duration_s
        entries = [
            entry | {"segment": mirror_segment(entry["segment"], item, duration_s, warnings)}
            for entry in record.get("annotations", [])
        ]
        database[name] = record | ({"annotations": entries} if entries else {})
        # Uneven frames keep their own times: a shorter duration would cut off the former beginning.
        if item.times_s is not None and duration_s < item.duration_s:
            database[name] |= {"duration": item.duration_s}
    return content | {"database": database}, warnings


def _read_database(path: Path) -> Any:
    """Return an annotation file's content.

    Raises:
        ValueError: it has another layout than one with a 'database'.
    """
    try:
        content = read_json(path)
        get_field(content, "database", f"{path}")
    except ValueError as error:
        raise ValueError(
            f"--annotations: only JSON with a 'database' can be reversed as a file ({error})"
        ) from error
    return content


def mirror_segment(
    segment: Sequence[float | str], item: VideoItem, duration_s: float, warnings: Counter[str]
) -> list[float]:
    """Return an annotated segment [start, end], in seconds, in the time of the reversed video.

    A detector that reads the reversed file forwards must get the same frames as one that reads the
    original backwards: N − 1 − f for frame f of the original (`VideoItem.to_timeline`). If frames
    are evenly spaced, f is rounded down, so a time stands for the frame that is shown then. The
    frame at t is the one that the reversed file shows at duration − t: the mapping is that of the
    N + 1 times between and around the frames. At exactly such a time both files show the later
    frame, so these times are moved by a millionth of a frame. If frames are unevenly spaced,
    nothing is rounded and t becomes t_last − t.

    A segment that ends after the last frame begins at 0, as files have no earlier time. One that is
    wholly after the end, where nothing can detect it, stays there.
    """
    from extract.sampling.reversal import reverse_seconds

    start_s, end_s = map(float, segment)
    if item.times_s is None:
        item = replace(item, duration_s=duration_s)
    if start_s >= item.duration_s:
        warnings["segments lie after the end of their video and stay there"] += 1
        return [start_s, end_s]
    fps = item.frames / item.duration_s
    if item.times_s is not None:
        pair = np.array(reverse_seconds(start_s, end_s, item.frames, fps))
    else:
        pair = np.array(reverse_seconds(start_s, end_s, item.frames + 1, fps))
        shown = item.frames - 1 - item.to_timeline(np.array([end_s, start_s]))
        pair = np.clip(pair, (shown + TINY) / fps, (shown + 1 - TINY) / fps)
    return [float(time_s) for time_s in np.maximum(pair, 0.0)]


if __name__ == "__main__":
    cli.run(main, "finished files are kept, and the same command goes on")
