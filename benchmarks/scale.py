"""Predict what extraction from a large collection takes: device hours, disk, requests, dollars.

    python -m benchmarks.scale [--size h] [--videos 100000] [--minutes 2] [--gpus 1 8 100]

Operations are counted on tensors without numbers, bytes and clips by the code that plans an
extraction, requests per job, flush and fold are those of `benchmarks/results/requests.md`. The
rate of a GPU and of a decoding core, prices, and how often a machine is taken away are arguments;
nothing is run, so every number is predicted. Machines are simulated: shares of whole videos, chosen
by name, wait for a free machine, which may be taken away; what its last flush has not written is
made again.
"""

import argparse
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import at_least_one
from benchmarks.sizes import FILES, count_forward_flops, experiment
from cache.address import DTYPES
from cache.format.arrays import SHARD_BYTES
from cache.format.writer import COMPACT_BYTES, COMPACT_SEGMENTS, FLUSH_BYTES, FLUSH_SECONDS
from cache.storage.remote import JOINED_BYTES
from configs.messages import format_bytes, markdown_table
from evaluate.reports.sections import format_duration
from extract.sampling.spans import whole_video_window
from extract.settings.units import CLIP_FRAMES, TUBELET

# Of benchmarks/results/requests.md.
REQUESTS_A_JOB = 11  # opening, the names of all videos, the writer's end
REQUESTS_A_FLUSH = 17  # 400 spans in one, with the one file that describes their videos
REQUESTS_A_FOLD = 2  # beside its reads and its shards, which are counted by their bytes
SPREAD = 0.75  # of the logarithm of videos' lengths
SEED = 0


@dataclass(frozen=True)
class Collection:
    """What an extraction from a collection of videos takes in all, before it is spread.

    Attributes:
        clips: that the network encodes; `frames`: that are decoded.
        device_s: of one GPU; `decoding_s`: of one core.
        features, block: bytes that activations after the network, or after one of its blocks,
            have before compression.
    """

    videos: int
    clips: int
    frames: int
    device_s: float
    decoding_s: float
    features: int
    block: int


@dataclass(frozen=True)
class Fleet:
    """How long machines take.

    Attributes:
        wall_s: until the last share is done.
        busy_s: of all machines together, starting up and what is made twice included.
        lost_s: of it, for what was made twice.
    """

    wall_s: float
    busy_s: float
    lost_s: float


def count_collection(
    size: str, videos: int, minutes: float, fps: float, flops: float, decoded: float
) -> Collection:
    """Return what a collection takes, both directions apart.

    Args:
        minutes: of a video, on average.
        flops: operations per second that a GPU reaches; `decoded`: frames per second of a core.
    """
    config, frames = experiment(size), round(60 * minutes * fps)
    window = whole_video_window(frames, config.sampling)
    cost = count_forward_flops(size)
    a_clip = (cost.transformer + cost.adapters) * CLIP_FRAMES / config.sampling.samples
    clips = window.samples // CLIP_FRAMES
    rows, patches = (
        window.samples // TUBELET,
        (config.pixels.size // config.backbone.trunk.patch) ** 2,
    )
    features = rows * config.backbone.width * DTYPES[config.cache.dtype].itemsize
    return Collection(
        videos,
        videos * clips,
        videos * len(window.frames),
        videos * clips * a_clip / flops,
        videos * len(window.frames) / decoded,
        videos * features,
        videos * features * patches,
    )


def count_requests(of: Collection, stored: int, shares: int, machines: int, wall_s: float) -> int:
    """Return the requests that writing `stored` bytes takes: jobs, flushes, folding.

    A writer flushes when enough waits, or enough time has passed: many slow machines flush often.
    """
    often = min(max(machines * wall_s / FLUSH_SECONDS, shares), of.videos)
    flushes = max(stored / FLUSH_BYTES, often)
    folds = max(stored / COMPACT_BYTES, flushes / COMPACT_SEGMENTS, shares)
    return round(
        shares * REQUESTS_A_JOB
        + flushes * REQUESTS_A_FLUSH
        + folds * REQUESTS_A_FOLD
        + max(stored / JOINED_BYTES, folds)
        + max(stored / SHARD_BYTES, folds)
    )


def draw_lengths(videos: int, mean_s: float) -> NDArray[np.float64]:
    """Return lengths of videos as collections have them: many short, few long."""
    lengths = np.random.default_rng(SEED).lognormal(0.0, SPREAD, videos)
    return lengths * (mean_s / lengths.mean())


def simulate_fleet(
    seconds: Sequence[float] | NDArray[np.float64],
    shares: int,
    machines: int,
    start_s: float,
    taken_every_s: float,
) -> Fleet:
    """Return how long machines take for shares of videos.

    Args:
        seconds: that each video takes a machine.
        start_s: that a job takes before its first video.
        taken_every_s: mean time after which a machine is taken away; its job goes back into the
            queue, and another machine comes. `inf`: never.
    """
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(np.asarray(seconds))  # as `Share` does by the names
    # Since when each waits, and the seconds that are left of it.
    waiting = [(0.0, share, float(shuffled[share::shares].sum())) for share in range(shares)]
    free, busy, lost, end = [0.0] * machines, 0.0, 0.0, 0.0
    while waiting:
        since, share, left = heapq.heappop(waiting)
        now = max(heapq.heappop(free), since)
        lives = rng.exponential(taken_every_s) if np.isfinite(taken_every_s) else np.inf
        if lives >= start_s + left:
            took = start_s + left
        else:  # what has been flushed stays
            took, done = lives, max(lives - start_s, 0.0)
            unsaved = min(done, FLUSH_SECONDS * rng.random())
            lost += unsaved + min(lives, start_s)
            heapq.heappush(waiting, (now + took, share, left - (done - unsaved)))
        busy += took
        end = max(end, now + took)
        heapq.heappush(free, now + took)
    return Fleet(end, busy, lost)


def tables(args: argparse.Namespace) -> str:
    """Return what is taken, in Markdown: by the collection, and by fleets of machines."""
    rate = args.tflops * 1e12 * args.reached
    of = count_collection(args.size, args.videos, args.minutes, args.fps, rate, args.decoded)
    device_h, decoding_h = of.device_s / 3600, of.decoding_s / 3600
    lines = [
        f"{of.videos:,} videos of {args.minutes:g} minutes at {args.fps:g} fps, size {args.size}, "
        "one direction:",
        f"{of.clips:,} clips to encode, {device_h:,.1f} hours of a GPU at "
        f"{rate / 1e12:.0f} TFLOP/s; "
        f"{of.frames:,} frames to decode, {decoding_h:,.1f} hours of a core: "
        f"{decoding_h / device_h:.1f} cores a GPU",
        "",
    ]
    cuts = {"features": of.features, "one block": of.block}
    month = {name: stored / 1e12 * args.terabyte_month for name, stored in cuts.items()}
    rows = [("stored", "bytes before compression", "dollars a month")]
    rows += [(name, format_bytes(stored), f"{month[name]:,.0f}") for name, stored in cuts.items()]
    lines += [markdown_table(rows), ""]
    fleets = [FLEET]
    video_s = max(of.device_s, of.decoding_s / args.cores) / of.videos  # one beside the other
    lengths = draw_lengths(of.videos, video_s)
    for machines in args.gpus:
        for factor in args.shares:
            shares = min(machines * factor, of.videos)
            every_s = 3600 * args.taken_every if args.taken_every else float("inf")
            fleet = simulate_fleet(lengths, shares, machines, args.start, every_s)
            requests = count_requests(of, of.features, shares, machines, fleet.wall_s)
            fleets.append(
                (
                    f"{machines:,}",
                    f"{shares:,}",
                    format_duration(fleet.wall_s),
                    f"{fleet.busy_s / 3600:,.1f}",
                    f"{fleet.lost_s / fleet.busy_s:.2%}",
                    f"{fleet.busy_s / 3600 * args.gpu_hour:,.0f}",
                    f"{requests:,}",
                    f"{requests / 1000 * args.thousand_requests:,.2f}",
                )
            )
    return "\n".join([*lines, markdown_table(fleets)])


FLEET = (
    *("GPUs", "shares", "all is done after", "hours of all GPUs", "made twice"),
    *("dollars for GPUs", "requests for features", "dollars for requests"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", choices=FILES, default="h")
    whole, above, least = at_least_one, above_zero, not_negative
    parser.add_argument("--videos", type=whole, default=100_000)
    parser.add_argument("--minutes", type=above, default=2.0, help="of a video, on average")
    parser.add_argument("--fps", type=above, default=30.0)
    parser.add_argument("--gpus", type=whole, nargs="+", default=[1, 8, 100], help="machines")
    parser.add_argument("--shares", type=whole, nargs="+", default=[1, 4, 20], help="per machine")
    parser.add_argument("--tflops", type=above, default=989.0, help="of a GPU in 16 bits")
    parser.add_argument("--reached", type=above, default=0.4, help="share of it")
    parser.add_argument("--decoded", type=above, default=1447.0, help="frames a second and core")
    parser.add_argument("--cores", type=whole, default=16, help="beside a GPU, that decode")
    parser.add_argument("--start", type=least, default=60.0, help="seconds before a first video")
    parser.add_argument(
        "--taken_every", type=least, default=6.0, help="hours until a machine is taken; 0: never"
    )
    parser.add_argument("--gpu_hour", type=least, default=2.5, help="dollars")
    parser.add_argument("--terabyte_month", type=least, default=23.0, help="dollars")
    parser.add_argument("--thousand_requests", type=least, default=0.005, help="dollars")
    args = parser.parse_args()
    if 0 < 3600 * args.taken_every < args.start:
        parser.error("--taken_every: machines that live shorter than --start finish nothing")
    print(tables(args))


def above_zero(text: str) -> float:
    """Return a number of the command line that is above 0."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError("give a number above 0")
    return float(text)


def not_negative(text: str) -> float:
    """Return a number of the command line that is 0 or more."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError("give 0 or more")
    return float(text)


if __name__ == "__main__":
    main()
