"""Find the actions in videos.

    python evaluate/detect.py VIDEO… --checkpoint runs/demo/fused/last.pt --page out.html
    python evaluate/detect.py videos/ 'more/*.mkv' --checkpoint FILE --json FILE --srt FOLDER

Videos are files, folders, or patterns in quotes. Prints a table for each; --json writes
ActivityNet's layout, --csv a table, --srt and --vtt a subtitle file for each video, --page an HTML
file with timelines, --clips each segment as a video of its own (without sound); --label_studio,
--elan and --via files for people who correct what was found in these annotation tools. Dotted
overrides change the checkpoint's settings, such as --evaluation.batch_size 2. Videos that cannot be
read are listed at the end, and the exit status is then 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import glob
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from configs import cli
from configs.messages import format_error
from configs.options import ScriptParser
from configs.progress import ProgressBar
from evaluate.annotations import Annotations, Detection, Segment, read_annotations, with_duration
from evaluate.files.annotation_tools import MediaFile, ToolFiles
from evaluate.files.clip_names import clip_names
from evaluate.files.outputs import Outputs
from evaluate.files.subtitles import format_clock, format_listing
from evaluate.files.timeline import TRUTH, PageVideo, check_embeddable
from evaluate.options import add_threshold, add_tool_files, check_threshold
from train.config import Experiment

if TYPE_CHECKING:
    from extract.parallel.guarded_frames import DecodingProcess
    from train.data.items import VideoItem
    from train.detector.model import Detector, VideoResult

SAVE_EVERY_S = 60.0  # what ends this process costs no more

USES = ("sampling", "pixels", "evaluation", "training.precision")


@dataclass
class DetectedVideos:
    """The results of the videos so far.

    Args:
        found: by video, the detections that count, best first.
        pages: the page's entries, if a page is wanted.
        uncut: why segments could not be cut out.
        seconds: how long the videos in `found` last.
        best: the highest score, whether it counts or not.
    """

    found: dict[str, list[Detection]] = field(default_factory=dict)
    pages: list[PageVideo] = field(default_factory=list)
    uncut: list[str] = field(default_factory=list)
    seconds: float = 0.0
    best: float = 0.0


def main() -> None:
    parser = ScriptParser(__doc__, Experiment, USES)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder or 'pattern'")
    parser.add_argument("--checkpoint", type=Path, required=True, help="detector, of any direction")
    parser.add_argument("--config", type=Path, help="YAML of settings, over the checkpoint's")
    add_threshold(parser, "least score that counts")
    parser.add_argument("--top", type=int, help="at most so many segments of a video, the best")
    parser.add_argument("--json", type=Path, metavar="FILE", help="ActivityNet's layout")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one segment a line")
    parser.add_argument("--srt", type=Path, metavar="FOLDER", help="subtitles, one file a video")
    parser.add_argument("--vtt", type=Path, metavar="FOLDER", help="the same for browsers")
    add_tool_files(parser)
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="segments cut out, as mp4")
    parser.add_argument("--page", type=Path, metavar="FILE", help="HTML: videos with timelines")
    parser.add_argument("--embed", action="store_true", help="put the videos into the page, too")
    parser.add_argument("--annotations", type=Path, help="ground truth for the page")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes beside this one")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    args, overrides = parser.parse()
    check_threshold(parser, args.threshold)
    if args.top is not None and args.top < 1:
        parser.error("--top must be at least 1")
    if args.workers < 0:
        parser.error("--workers must not be negative")
    if (args.embed or args.annotations) and not args.page:
        parser.error("--embed and --annotations go with --page")
    from extract.parallel.guarded_frames import DecodingProcess

    with nullcontext() if args.workers else DecodingProcess() as process:
        bad, uncut = detect(
            args.videos,
            args.checkpoint,
            args.config,
            overrides,
            Outputs(
                *(args.json, args.csv, args.srt, args.vtt, args.page, args.embed),
                ToolFiles(args.label_studio, args.elan, args.via),
                args.clips,
            ),
            annotation_file=args.annotations,
            threshold=args.threshold,
            top=args.top,
            workers=args.workers,
            process=process,
            cpu=args.cpu,
        )
    told = []
    if bad:
        told.append("\n  ".join([f"{len(bad)} of the videos could not be read:", *bad.values()]))
    if uncut:
        told.append("\n  ".join([f"{len(uncut)} of the segments could not be cut out:", *uncut]))
    if told:
        sys.exit("\n".join(f"error: {each}" for each in told))


def detect(
    videos: Sequence[str],
    checkpoint: Path,
    config_file: Path | None,
    overrides: Sequence[str],
    outputs: Outputs,
    *,
    annotation_file: Path | None,
    threshold: float,
    top: int | None,
    workers: int,
    process: DecodingProcess | None,
    cpu: bool,
) -> tuple[dict[str, str], list[str]]:
    """Detect in all videos and write the requested files.

    Args:
        process: decodes if there are no `workers`; a decoder that ends it costs only its video.

    Returns:
        Why videos could not be read, by name, and why segments could not be cut out.
    """
    from extract.backbone.frozen import hold_frozen
    from extract.video.reader import VideoError
    from train.data.frame_rates import describe_unlike_rates
    from train.detector.model import Detector
    from train.detector.sources import read_source, resolve_config
    from train.engine.session import inference_accelerator
    from train.errors import translate_oom, translate_worker_death
    from train.postprocessing.candidates import describe_nothing_found

    paths = video_paths(videos)
    annotations = read_truth(annotation_file, paths) if annotation_file else None
    saved = read_source(checkpoint, config_file, overrides)
    config = resolve_config(config_file, saved, str(checkpoint), overrides)
    accelerator = inference_accelerator(config, cpu)
    detector = Detector.restore(saved._replace(config=config), checkpoint)
    detector = detector.to(accelerator.device)
    hold_frozen(detector, config.training.precision, config.pixels.size)
    outputs.make_folders()
    items, bad = probe_files(paths, detector.config.sampling.fps, process)
    rates = {item.name: item.fps for item in items}
    if unlike := describe_unlike_rates(rates, saved.frame_rates, detector.config.sampling):
        print(unlike)
    truth = select_truth(items, annotations) if annotations else {}
    for item in items if outputs.embed else ():
        check_embeddable(item.path)
    detected = DetectedVideos()
    limit = config.evaluation.nms.max_segments
    title = f"Found by {checkpoint}, which reads {' and '.join(config.directions)}"
    write_files = partial(
        outputs.write_all, detected.found, detected.pages, detector.classes, title, threshold
    )
    began = written_at = time.monotonic()
    try:
        total = sum(len(detector.windows(item)) for item in items)
        with ProgressBar(total=total, unit="window", leave=False, smoothing=0.05) as bar:
            for item in items:
                bar.set_description(item.path.name)
                since = time.monotonic()
                try:
                    with (
                        translate_oom("lower evaluation.batch_size"),
                        translate_worker_death("--workers"),
                    ):
                        examined = detector.detect_with_scores(
                            item, bool(outputs.page), workers, bar.update, process
                        )
                    source = outputs.page_source(item.path)
                except (VideoError, OSError) as error:
                    bad[item.name] = describe_unread_video(item.path, error)
                    continue
                took = time.monotonic() - since
                every = examined.detections[detector.main_output]
                chosen = select_detections(every, threshold, top)
                detected.found[item.name] = chosen
                detected.seconds += item.duration_s
                detected.best = max([detected.best, *(each.score for each in every[:1])])
                bar.write(describe_found(item, chosen, took, limit), file=sys.stdout)
                outputs.write_subtitles(item.name, chosen)
                if outputs.clips:
                    detected.uncut += cut_segments(outputs.clips, item, chosen)
                if outputs.page:
                    segments = truth.get(item.name)
                    page_video = build_page_video(item, examined, detector, segments, top, source)
                    detected.pages.append(page_video)
                if time.monotonic() - written_at > SAVE_EVERY_S:
                    write_files()
                    written_at = time.monotonic()
    finally:  # after an interrupt, too: keep what was found
        write_files()
        media = {item.name: MediaFile(item.path, item.fps) for item in items}
        outputs.tools.write(detected.found, media)
    if detected.found:
        print(describe_speed(detected, time.monotonic() - began))
        if not detected.best:
            cause = describe_nothing_found(len(detected.found), config.evaluation.min_score)
            print(f"warning: {cause}")
        elif not any(detected.found.values()):
            best = f"the best score is {detected.best:.3g}"
            print(f"no segment reaches --threshold {threshold:g}; {best}")
    return bad, detected.uncut


def video_paths(given: Sequence[str]) -> list[Path]:
    """Return the files of names, folders and patterns, each once.

    Raises:
        ValueError: there are none, or two have the same name without folder and extension.
    """
    from extract.video.files import files_by_name

    paths: dict[Path, None] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = [file for files in files_by_name(path).values() for file in files]
            if not inside:
                raise ValueError(f"{path}: no video is in this folder")
            paths |= dict.fromkeys(inside)
        elif path.exists():
            paths[path] = None
        else:
            matches = map(Path, sorted(glob.glob(name, recursive=True)))
            matching = [match for match in matches if not match.is_dir()]
            if not matching:
                raise ValueError(f"{name}: there is no such file or folder, and nothing matches it")
            paths |= dict.fromkeys(matching)
    names: dict[str, Path] = {}
    for path in paths:
        if path.stem in names:
            raise ValueError(
                f"{names[path.stem]} and {path} share a name, which results go by; "
                "detect in one after the other"
            )
        names[path.stem] = path
    return list(paths)


def read_truth(path: Path, videos: Sequence[Path]) -> Annotations:
    """Read the annotations of these videos; others that need their files are left out."""
    from train.data.truth import frame_times

    if not path.exists():
        raise ValueError(f"--annotations: there is no file or folder {path}")
    files = {video.stem: video for video in videos}
    times = partial(frame_times, files, "what is given")
    return read_annotations(path, frame_times=times, skip_unread=True)


def select_truth(
    items: Sequence[VideoItem], annotations: Annotations
) -> dict[str, tuple[Segment, ...]]:
    """Return the annotated segments of those videos that the annotations contain."""
    truth = {}
    for item in items:
        video = annotations.videos.get(item.name)
        if video is not None and video.duration_s is None:
            video = with_duration(video, item.duration_s, Counter())
        if video is not None:
            truth[item.name] = video.segments
    if items and not truth:
        print(f"warning: the annotations have none of these videos, such as {items[0].name}")
    return truth


def probe_files(
    paths: Sequence[Path],
    sampling_fps: float | None,
    process: DecodingProcess | None = None,
) -> tuple[list[VideoItem], dict[str, str]]:
    """Return the files that can be read, and by name why the others cannot.

    Args:
        sampling_fps: `sampling.fps`.
        process: looks at a single file, too, if there is one.
    """
    from extract.video.index import VideoIndex
    from extract.video.probe import probe
    from extract.video.reader import VideoError
    from train.data.video_files import make_item

    items, bad = [], {}
    indices = probe(paths, running=process.pool if process else None)
    for path, index in zip(paths, indices, strict=True):
        if isinstance(index, VideoIndex) and index.repaired:
            print(f"note: {path}: {index.describe_repair()}")
        try:
            items.append(make_item(path, index, sampling_fps))
        except VideoError as error:
            bad[path.stem] = str(error)
    return items, bad


def describe_unread_video(path: Path, error: Exception) -> str:
    """Return why nothing was found out about a video, in one line that names it."""
    cause = format_error(error).removeprefix("error: ")
    return cause if str(path) in cause else f"{path}: {cause}"


def select_detections(
    detections: Sequence[Detection], threshold: float, top: int | None
) -> list[Detection]:
    """Return the best detections with at least this score, best first."""
    return [d for d in detections if d.score >= threshold][:top]


def describe_found(
    item: VideoItem, detections: Sequence[Detection], took: float, limit: int
) -> str:
    """Return what the terminal shows of one video.

    Args:
        took: seconds that detecting took.
        limit: `evaluation.nms.max_segments`.
    """
    rate = f"{took:.1f} s, {item.duration_s / max(took, 1e-9):.1f} × real time"
    count = f"{len(detections)} segment{'' if len(detections) == 1 else 's'}"
    text = f"{item.path} ({format_clock(item.duration_s)}): {count} ({rate})\n"
    if detections:
        text += f"{format_listing(detections)}\n"
    if len(detections) == limit:
        text += (
            f"\nnote: evaluation.nms.max_segments ({limit}) was reached; a long video may hold "
            "more actions: raise it"
        )
    return text


def describe_speed(detected: DetectedVideos, took: float) -> str:
    """Return how many videos were read in how many seconds."""
    videos = "1 video" if len(detected.found) == 1 else f"{len(detected.found)} videos"
    rate = f"{detected.seconds / took:.1f} × real time"
    return f"{videos}, {format_clock(detected.seconds, 0)} in {took:.1f} s: {rate}"


def build_page_video(
    item: VideoItem,
    examined: VideoResult,
    detector: Detector,
    truth: Sequence[Segment] | None,
    top: int | None,
    source: str,
) -> PageVideo:
    """Return the page's entry for one video; without annotations it has no lane of truth."""
    lanes: dict[str, Sequence[Segment | Detection]] = {} if truth is None else {TRUTH: truth}
    # The detector's own result comes last, below the streams that it is made of.
    for name in (*detector.stream_names, detector.main_output):
        if name in examined.detections:
            lanes[name] = examined.detections[name][:top]
    return PageVideo(
        name=item.path.name,
        source=source,
        duration_s=item.duration_s,
        fps=item.frames / item.duration_s,
        lanes=lanes,
        main=detector.main_output,
        curves=examined.curves.scores,
        times_s=examined.curves.times_s,
    )


def cut_segments(folder: Path, item: VideoItem, detections: Sequence[Detection]) -> list[str]:
    """Cut the segments out; return why some could not be."""
    from extract.transcoding.cut import cut_segment
    from extract.video.reader import VideoError, VideoReader

    problems = []
    try:
        reader = VideoReader(item.path)
    except VideoError as error:  # it is no longer what it was
        return [str(error)]
    for segment, name in zip(detections, clip_names(item.name, detections), strict=True):
        try:
            cut_segment(reader, segment.start_s, segment.end_s, folder / name)
        except (OSError, ValueError) as error:
            problems.append(format_error(error).removeprefix("error: "))
    return problems


if __name__ == "__main__":
    cli.run(main)
