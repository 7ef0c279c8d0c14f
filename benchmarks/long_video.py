"""Measure detection in a long video: peak memory against a shorter one's, rate, and the segments.

    python -m benchmarks.long_video data/demo/videos/test_000.mp4 --checkpoint FILE [--check]

The video is repeated without encoding it again. Each length has a process of its own, whose peak
is reported. With --check every window of the last is decoded and predicted again, by itself, and
the segments must be bit-identical; windows then go through the detector one at a time.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch

from configs.progress import ProgressBar
from evaluate.annotations import Detection
from evaluate.files.subtitles import format_clock
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import arrange, window_frames
from extract.video.reader import VideoReader
from train.data.batch import Sample, collate
from train.data.video_files import probe_item
from train.detector.model import Detector
from train.postprocessing.candidates import merge_windows, predict_windows


class Measurement(NamedTuple):
    """One run: seconds of video and of work, windows, peak memory in MB, segments."""

    duration_s: float
    took_s: float
    windows: int
    peak_mb: float
    segments: list[Detection]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("video", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 120])
    parser.add_argument("--check", action="store_true", help="compare with single windows")
    args = parser.parse_args()
    batch = 1 if args.check else None
    print("| video | windows | seconds | × real time | peak MB | segments |")
    print("|---" * 6 + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.minutes:
            path = Path(folder) / f"{minutes:g}.mp4"
            repeat_video(args.video, path, 60 * minutes)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                run = pool.apply(measure, (args.checkpoint, path, batch))
            cells = (
                format_clock(run.duration_s, 0),
                run.windows,
                f"{run.took_s:.1f}",
                f"{run.duration_s / run.took_s:.1f}",
                f"{run.peak_mb:.0f}",
                len(run.segments),
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if args.check:
            same = run.segments == detect_one_by_one(load_detector(args.checkpoint, 1), path)
            print("segments of single windows: " + ("the same" if same else "OTHERS"))
            sys.exit(not same)


def repeat_video(source: Path, target: Path, duration_s: float) -> None:
    """Write a video's packets again and again, until it lasts so long.

    The video must begin with a frame that resets the decoder, as those of `make demo` do.
    """
    with av.open(str(source)) as container, av.open(str(target), "w") as longer:
        stream: Any = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        copy = longer.add_stream_from_template(stream, opaque=True)
        step = round(1 / (stream.average_rate * stream.time_base))
        times = [packet.pts or 0 for packet in packets]
        span = max(times) - min(times) + step
        for turn in range(max(1, round(duration_s / (span * stream.time_base)))):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts = (packet.pts or 0) + turn * span
                again.dts = (packet.dts or 0) + turn * span
                again.time_base = Fraction(stream.time_base)
                again.duration = packet.duration  # else the last one has no duration and is dropped
                again.is_keyframe = packet.is_keyframe
                again.stream = copy
                longer.mux(again)


def load_detector(checkpoint: Path, batch: int | None) -> Detector:
    """Return a detector that takes `batch` windows at a time; None: as in its settings."""
    detector = Detector.from_checkpoint(checkpoint)
    if batch is not None:
        evaluation = replace(detector.config.evaluation, batch_size=batch)
        detector.config = replace(detector.config, evaluation=evaluation)
    return detector.cuda() if torch.cuda.is_available() else detector


def measure(checkpoint: Path, path: Path, batch: int | None) -> Measurement:
    """Detect in one video, in a process that did nothing else."""
    detector = load_detector(checkpoint, batch)
    began = time.monotonic()
    item = probe_item(path)
    windows = len(detector.windows(item))
    with ProgressBar(
        total=windows, desc=format_clock(item.duration_s, 0), unit="window", leave=False
    ) as bar:
        found = detector.detect_with_scores(item, done=bar.update).detections[detector.main_output]
    took = time.monotonic() - began
    return Measurement(item.duration_s, took, windows, peak_mb(), found)


def peak_mb() -> float:
    """Return the most memory that this process has held (Linux)."""
    # Not getrusage, which includes the peak before exec.
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def detect_one_by_one(detector: Detector, path: Path) -> list[Detection]:
    """Detect in a video window by window, independently: the decoder seeks to each."""
    item, reader = probe_item(path), VideoReader(path)
    config, windows = detector.config, detector.windows(item)
    device = next(detector.parameters()).device
    transform = evaluation_transform(config.pixels)
    found = []
    for window in ProgressBar(windows, desc="single windows", unit="window", leave=False):
        (frames,) = window_frames(reader, [window], transform)
        nothing = torch.zeros(0, 2)
        sample = Sample(
            video=item.name,
            window=window,
            inputs=tuple(arrange(frames, window, d) for d in config.directions),
            mask=torch.from_numpy(window.mask()),
            segments=(nothing,) * len(config.directions),
            labels=torch.zeros(0, dtype=torch.int64),
        )
        alone = predict_windows(
            detector.predict_batch, [collate([sample])], config.evaluation, device
        )
        found += alone[detector.main_output][item.name]
    return merge_windows(found, item, detector.classes, config.evaluation)


if __name__ == "__main__":
    main()
