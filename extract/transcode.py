"""Write reversed video files and their annotations, for programs that read videos one way only.

    python extract/transcode.py --reverse --videos data/demo/videos --out data/demo/reversed \
        --annotations data/demo/annotations.json

Palindrome itself needs none of it: it reads the same files in both directions. OUT gets one
lossless .mp4 file per video (--crf N: smaller, and no longer exact), without sound, and the
annotation file under its own name. An interrupted run just goes on.
"""

import argparse
import json
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from configs.files import write_text
from evaluate.annotations import read_annotations
from extract.backwards import is_finished, write_reversed
from extract.encode import SUFFIX
from extract.index import VideoError
from extract.probe import probe
from extract.reversal import reverse_seconds
from train.errors import EXPECTED, message

if TYPE_CHECKING:  # imported where it is used: each process would spend seconds on accelerate
    from train.items import Item

TINY = 1e-6  # frames


class Job(NamedTuple):
    """One file to write; `crf` and `threads` as in `write_reversed`."""

    source: Path
    target: Path
    crf: int | None
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--reverse", action="store_true", required=True, help="what to do")
    parser.add_argument("--videos", type=Path, required=True, help="folder of video files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--annotations", type=Path, help="their annotation file")
    parser.add_argument(
        "--info_csv", type=Path, nargs="+", default=[], help="tables with video, fps and count"
    )
    parser.add_argument("--crf", type=int, help="x264's quality, 1 to 51; default: lossless")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="files at once"
    )
    args = parser.parse_args()
    try:
        problems = run(args)
    except EXPECTED as error:
        sys.exit(message(error))
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on")
        sys.exit(130)
    if problems:
        causes = "\n  ".join(problems)
        sys.exit(f"error: {len(problems)} videos could not be reversed:\n  {causes}")


def run(args: argparse.Namespace) -> list[str]:
    """Write everything; return what is wrong with the videos that could not be reversed."""
    if args.crf is not None and not 1 <= args.crf <= 51:
        raise ValueError(f"--crf: {args.crf} is not 1 (best) to 51 (worst); leave out for lossless")
    if args.processes < 1:
        raise ValueError(f"--processes: {args.processes} is not at least 1")
    sources = _sources(args.videos)
    if args.out.resolve() == args.videos.resolve():
        raise ValueError("--out: choose another folder than --videos, whose files are not replaced")
    annotations = args.annotations
    if annotations and (args.out / annotations.name).resolve() == annotations.resolve():
        raise ValueError(f"--out: {annotations} lies there and would be replaced; choose another")
    for table in args.info_csv:
        if not table.is_file():
            raise ValueError(f"--info_csv: there is no file {table}")
    if annotations:  # what is wrong with it is said before the long work
        read_annotations(annotations, info_csv=args.info_csv, ignore_labels=())
    args.out.mkdir(parents=True, exist_ok=True)

    frames: dict[str, int] = {}
    problems: dict[str, str] = {}
    paths = list(sources.values())
    for path, found in zip(paths, probe(paths), strict=True):
        if isinstance(found, VideoError):
            problems[path.stem] = str(found)
        else:
            frames[path.stem] = len(found.pts)
    jobs = []
    threads = max(1, len(os.sched_getaffinity(0)) // min(args.processes, max(1, len(frames))))
    for name in frames:
        job = Job(sources[name], args.out / (name + SUFFIX), args.crf, threads)
        try:
            if not is_finished(*job[:3]):
                jobs.append(job)
        except (ValueError, OSError) as error:
            problems[name] = str(error)
    as_rgb = _write_all(jobs, frames, args.processes, problems)
    done = [sources[name] for name in sources if name not in problems]
    print(f"{args.out}: {len(done)} reversed videos, {len(jobs)} of them to make")
    if as_rgb and args.crf is None:
        print(f"{as_rgb} of them hold RGB: only so VideoReader gives exactly the source's pixels")
    if annotations:
        from train.items import item_of

        content, warnings = reversed_annotations(
            annotations, {path.stem: item_of(path) for path in done}, args.info_csv
        )
        write_text(
            args.out / annotations.name, json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        )
        for what, count in warnings.items():
            print(f"warning: {count} {what}")
    return list(problems.values())


def _sources(folder: Path) -> dict[str, Path]:
    """Return the video files of a folder by name; raise ValueError if there are none."""
    from train.items import VIDEO_SUFFIXES, video_files

    if not folder.is_dir():
        raise ValueError(f"--videos: there is no folder {folder}")
    files = video_files(folder, "--videos")
    if not files:
        raise ValueError(f"--videos: {folder} holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return files


def reversed_annotations(
    path: Path, items: "Mapping[str, Item]", info_csv: Sequence[Path] = ()
) -> tuple[dict[str, Any], Counter[str]]:
    """Return an annotation file's content for the reversed videos, and counts of what to know.

    Labels and everything else stay as they are; videos that are not in `items` (by name) are left
    out. Only the duration of a video with uneven frames is raised to the file's.

    Raises:
        ValueError: the file is malformed.
    """
    known = read_annotations(path, info_csv=info_csv, ignore_labels=()).videos
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    warnings: Counter[str] = Counter()
    database = {}
    for name, record in content["database"].items():
        if name not in items:
            warnings["videos of the annotations have no reversed file and are left out"] += 1
            continue
        item = items[name]
        duration_s = known[name].duration_s or item.duration_s
        entries = [
            entry | {"segment": mirrored(entry["segment"], item, duration_s, warnings)}
            for entry in record.get("annotations", [])
        ]
        database[name] = record | ({"annotations": entries} if entries else {})
        # Uneven frames keep their own times: a shorter duration would cut off what was early.
        if item.times_s is not None and duration_s < item.duration_s:
            database[name] |= {"duration": item.duration_s}
    return content | {"database": database}, warnings


def mirrored(
    segment: Sequence[float | str], item: "Item", duration_s: float, warnings: Counter[str]
) -> list[float]:
    """Return where an annotated segment [start, end], in seconds, lies in the reversed video.

    A detector that reads the reversed file forwards must be told the frames that one is told which
    reads the original backwards: N − 1 − f where the original has f (`Item.to_frames`). Where
    frames come evenly, f is rounded down, so a time says which frame is being shown. At t of
    `duration_s` that is the frame which the reversed file shows at duration − t: the mapping is
    that of N + 1 times between and around the frames. On such a time itself the later frame
    is the one shown, in both files: those are moved by a millionth of a frame. Where frames come
    unevenly, nothing is rounded and t becomes t_last − t.

    What ends behind the last frame begins at 0, as files know no earlier time. What lies wholly
    behind the end, where nobody can find it, stays there.
    """
    start_s, end_s = map(float, segment)
    if item.times_s is None:
        item = replace(item, duration_s=duration_s)
    if start_s >= item.duration_s:
        warnings["segments lie behind the end of their video and stay there"] += 1
        return [start_s, end_s]
    fps = item.frames / item.duration_s
    if item.times_s is not None:
        pair = np.array(reverse_seconds(start_s, end_s, item.frames, fps))
    else:
        pair = np.array(reverse_seconds(start_s, end_s, item.frames + 1, fps))
        shown = item.frames - 1 - item.to_frames(np.array([end_s, start_s]))
        pair = np.clip(pair, (shown + TINY) / fps, (shown + 1 - TINY) / fps)
    return [float(time_s) for time_s in np.maximum(pair, 0.0)]


def _write_all(
    jobs: Sequence[Job], frames: Mapping[str, int], processes: int, problems: dict[str, str]
) -> int:
    """Write files in other processes; add to `problems`; return how many files hold RGB."""
    if not jobs:
        return 0
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    # Long ones first: none is begun when the others are done.
    jobs = sorted(jobs, key=lambda job: -frames[job.source.stem])
    total = sum(frames[job.source.stem] for job in jobs)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, (counter,))
    as_rgb = 0
    try:
        pending: dict[Future[bool | str], Job] = {pool.submit(_make, job): job for job in jobs}
        with tqdm(total=total, desc="reversing videos", unit="frame") as bar:
            while pending:
                finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    job, answer = pending.pop(future), future.result()
                    if isinstance(answer, str):
                        problems[job.source.stem] = answer
                    else:
                        as_rgb += answer
                bar.update(counter.value - bar.n)
    except BrokenProcessPool as error:
        raise OSError(
            "a process that reverses videos ended unexpectedly (a video that its decoder cannot "
            "stand, or too little memory: lower --processes); the same command goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return as_rgb


_counter: Any = None  # of frames that are done, shared by all processes


def _begin(counter: Any) -> None:
    global _counter
    _counter = counter
    av.logging.set_level(av.logging.PANIC)  # what is wrong is told once, in the end
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process behind a killed one, whose next run writes the same files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(job: Job) -> bool | str:
    """Write one file; return whether it holds RGB, or what is wrong with it."""
    try:
        return write_reversed(*job, tell=_tell)
    except VideoError as error:
        return str(error)
    except (ValueError, OSError, MemoryError, av.FFmpegError) as error:
        return f"{job.source}: cannot be reversed: {error}"


def _tell(frames: int) -> None:
    with _counter.get_lock():
        _counter.value += frames


if __name__ == "__main__":
    main()
