"""Train on proxies and on the 720p files that they are made of: is the mAP the same?

    OMP_NUM_THREADS=1 python -m benchmarks.proxy_training [--seeds 0 1 2] [--epochs 20]

The demo's videos are enlarged to 720p H.264 (B-frames, a keyframe every 250), proxies are made of
them by `extract/transcode.py`, and the demo is trained on either with each seed, by its own
commands; checkpoints are scored on the test videos of their own kind. Frame counts and times of
both kinds must be equal. Existing files are not made again. The table goes to OUT/results.md. A
frame cache saves most of the decoding. Needs 1 GB of disk beside 20 GB that stay free and, on 2
cores, about 20 minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from configs.atomic import atomic_path, write_text
from configs.progress import ProgressBar
from extract.video.reader import VideoReader

DEMO = Path("data/demo")
CONFIG = "configs/e2e/demo/forward.yaml"
HEIGHT = 720
SHORT_SIDE = 112
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/proxy_training"))
    args = parser.parse_args()
    run_script("extract/demo.py", "--out", str(DEMO))
    large, small = args.out / "720p", args.out / "proxies"
    enlarge_all(sorted((DEMO / "videos").glob("*.mp4")), large)
    options = ["--short_side", str(SHORT_SIDE), "--videos", str(large), "--out", str(small)]
    run_script("extract/transcode.py", *options, "--annotations", str(DEMO / "annotations.json"))
    check_same_times(large, small)
    scores = {
        (videos, seed): train_and_score(videos, seed, args.epochs, args.out)
        for seed in args.seeds
        for videos in (large, small)
    }
    write_text(args.out / "results.md", scores_by_seed(scores, args.seeds))
    print(scores_by_seed(scores, args.seeds))


def run_script(*command: str) -> None:
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, *command], check=True)


def enlarge_all(sources: list[Path], folder: Path) -> None:
    """Write 720p copies of videos into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / source.name for source in sources]
    jobs = [pair for pair in zip(sources, targets, strict=True) if not pair[1].exists()]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        done = pool.map(enlarge, *zip(*jobs, strict=True)) if jobs else iter(())
        for _ in ProgressBar(done, total=len(jobs), desc="enlarging", unit="video"):
            pass


def enlarge(source: Path, target: Path) -> None:
    """Write one video with a height of 720 pixels, every frame at its time."""
    with (
        atomic_path(target) as aside,
        av.open(str(source)) as read,
        av.open(str(aside), "w", format="mp4") as written,
    ):
        video = read.streams.video[0]
        stream: Any = written.add_stream("libx264", rate=Fraction(video.average_rate or 1))
        width = round(video.width * HEIGHT / video.height / 2) * 2
        stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
        stream.options = {"g": "250", "bf": "3", "preset": "veryfast", "threads": "1"}
        for frame in read.decode(video):
            larger = frame.reformat(width, HEIGHT, interpolation="BICUBIC")
            larger.pts, larger.time_base = frame.pts, frame.time_base
            written.mux(stream.encode(larger))
        written.mux(stream.encode())


def check_same_times(large: Path, small: Path) -> None:
    """Exit unless every proxy has as many frames as its source, at the same times."""
    for path in sorted(large.glob("*.mp4")):
        one, other = VideoReader(path), VideoReader(small / path.name)
        every = np.arange(len(one))
        if len(one) != len(other) or np.abs(one.times(every) - other.times(every)).max() > 1e-3:
            sys.exit(f"{path.name}: its proxy has other frames or times")


def train_and_score(videos: Path, seed: int, epochs: int, out: Path) -> dict[str, float]:
    """Return the test metrics of a training on these videos."""
    run = out / f"{videos.name}_{seed}"
    settings = ["--data.videos", str(videos), "--training.seed", str(seed)]
    settings += ["--training.epochs", str(epochs), "--training.stop_epoch", str(epochs)]
    settings += ["--data.frame_cache", str(out / "frames")]  # the samples are the same to the bit
    run_script("train/e2e.py", "--config", CONFIG, "--out", str(run), "--resume", *settings)
    run_script("evaluate/run.py", "--checkpoint", str(run / "last.pt"), "--out", str(run / "test"))
    metrics: dict[str, float] = json.loads((run / "test" / "metrics.json").read_text())
    return metrics


def scores_by_seed(scores: dict[tuple[Path, int], dict[str, float]], seeds: list[int]) -> str:
    """Return average mAP of both kinds by seed, and their paired difference."""
    kinds = list(dict.fromkeys(videos for videos, _ in scores))
    average = {
        key: statistics.mean(metrics[f"mAP@{tiou:g}"] for tiou in TIOUS)
        for key, metrics in scores.items()
    }
    lines = [f"| trained on | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | deviation |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    for kind in kinds:
        values = [average[kind, seed] for seed in seeds]
        cells = [f"{value:.4f}" for value in (*values, statistics.mean(values))]
        lines.append(f"| {kind.name} | {' | '.join(cells)} | {np.std(values, ddof=1):.4f} |")
    large, small = kinds
    gained = [average[small, seed] - average[large, seed] for seed in seeds]
    cells = [f"{value:+.4f}" for value in (*gained, statistics.mean(gained))]
    lines.append(f"| difference | {' | '.join(cells)} | {np.std(gained, ddof=1):.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
