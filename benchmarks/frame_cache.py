"""Time training samples from ordinary 720p H.264, from proxies and from kept frames.

    OMP_NUM_THREADS=1 python -m benchmarks.frame_cache [FILE ...] [--repeats 9]

Without files, one is made: H.264 with B-frames and a keyframe every 250, fine detail with a little
noise that moves all the time. A sample is that of a THUMOS-14 run (`train/data/windows.py`), one
random window in one thread: with the whole published augmentation, of which training makes most on
the device, and with the random crop and the flip alone, as loader workers make it. The ways take
turns on the same windows; numbers are medians of input frames per second (`filled/s`: of the first
time, when a video's frames are decoded and kept). Ends with code 1 if the frames cannot be kept.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from benchmarks.decode import median_seconds, with_action, write_synthetic
from configs.loader import load
from extract.sampling.frame_cache import FrameCache
from extract.transcoding.proxy import ProxyConfig, write_proxy
from train.config import Experiment
from train.data.batch import collate
from train.data.video_files import probe_item, with_digest
from train.data.windows import TrainingWindows, WindowInputs

CONFIG = Path(__file__).parent.parent / "configs/e2e/thumos14/videomae_s_adapter_forward.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs="*", help="videos")
    parser.add_argument("--window", type=int, default=96, help="samples, every fourth frame")
    parser.add_argument("--frames", type=int, default=1200, help="of the video that is made")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load(Experiment, CONFIG, [f"--sampling.window_size={args.window}", "--head.levels=5"])
    light = replace(config, pixels=replace(config.pixels, rand_augment=0, colour_jitter=None))
    ways = "video → proxy → kept frames"
    print(f"| file | frames | bytes: {ways} | filled/s | sample: {ways} | crop and flip: {ways} |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = args.files or [write_synthetic(place / "720p.mp4", args.frames, 720, 1280)]
        for file in files:
            print(race_samples(file, place, (config, light), args.repeats), flush=True)


def race_samples(file: Path, folder: Path, configs: tuple[Experiment, ...], repeats: int) -> str:
    """Return a row of the table."""
    proxy, cache = folder / "proxy.mp4", FrameCache(folder, configs[0].sampling)
    write_proxy(file, proxy, ProxyConfig(configs[0].pixels.train_short_side))
    item, small = (with_action(with_digest(probe_item(path))) for path in (file, proxy))
    windows = TrainingWindows([item], WindowInputs.of(configs[0], frame_cache=cache))
    began = time.perf_counter()
    samples = windows[0, 0].inputs[0].shape[1]
    filled_s = time.perf_counter() - began
    kept = cache.file(item.info, windows.transform.shrink)
    if not kept.exists():
        sys.exit(f"{folder} has no room for the frames of {file}")
    rates = []
    for config in configs:
        ways = (
            sample_maker(TrainingWindows([item], WindowInputs.of(config))),
            sample_maker(TrainingWindows([small], WindowInputs.of(config))),
            sample_maker(TrainingWindows([item], WindowInputs.of(config, frame_cache=cache))),
        )
        rates.append(" → ".join(f"{samples / s:.0f}" for s in median_seconds(ways, repeats)))
    sizes = " → ".join(f"{path.stat().st_size / 1e6:.1f}" for path in (file, proxy, kept))
    filled = -(-item.frames // configs[0].sampling.sample_step) / filled_s
    return f"| {file.name} | {item.frames} | {sizes} MB | {filled:.0f} | {rates[0]} | {rates[1]} |"


def sample_maker(windows: TrainingWindows) -> Callable[[], None]:
    """Return a function that makes the sample of the next epoch, and its augmentation."""
    epochs = count()

    def make_sample() -> None:
        collate([windows[next(epochs), 0]]).augmented()

    return make_sample


if __name__ == "__main__":
    main()
