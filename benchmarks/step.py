"""Time the training step of VideoMAE-S with 12 adapters: seconds, memory, share of the machine.

    python benchmarks/step.py                        # float32 and bfloat16, each recomputation
    python benchmarks/step.py --precisions fp32 --repeats 5

One window of 192 frames, 160 px: forward, losses, backward, clipping and update of the whole
detector. Every variant runs in a process of its own, so that its peak memory is its own; the
machine's matrix rate (products of 2048³) is measured in the same process, right after, and
compared with the products that a step really does, recomputed ones included. The
reference implementation took 14.9 s and 2.4 GB in float32, with recomputation, where such a product
ran at 170 GFLOP/s on two cores.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from configs.loader import load
from train.config import Experiment
from train.detector.model import Detector
from train.detector.training import build_optimizer
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

CONFIG = Path(__file__).resolve().parent.parent / (
    "configs/e2e/thumos14/videomae_s_adapter_forward.yaml"
)
FRAMES, SIZE, CLASSES = 192, 160, 20
REFERENCE_SECONDS = 14.9


def matrix_rate(dtype: torch.dtype) -> float:
    """Return floating-point operations per second of a 2048³ product, median of 9."""
    left, right = torch.randn(2, 2048, 2048).to(dtype)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(seconds[1:])


def measure(precision: str, recompute: str, repeats: int) -> dict[str, float]:
    """Return medians over steps of one variant, in this process."""
    overrides = [f"--sampling.window_size={FRAMES}", f"--backbone.recompute={recompute}"]
    config = load(Experiment, CONFIG, [*overrides, "--backbone.weights=null"])
    config = replace(config, pixels=replace(config.pixels, size=SIZE))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    detector = Detector(config, tuple(f"class {i}" for i in range(CLASSES))).train()
    optimizer = build_optimizer(detector, config.training)
    frames = torch.randint(0, 256, (1, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8)
    mask = torch.ones(1, FRAMES, dtype=torch.bool)
    reflection = torch.tensor([FRAMES - 1.0])
    segments, labels = (torch.tensor([[20.0, 60.0], [90.0, 100.0]]),), (torch.tensor([3, 4]),)
    points = pyramid_points(FRAMES, config.head.levels, torch.device("cpu"))
    targets = assign_batch(points, segments, labels, CLASSES)

    def step() -> tuple[float, float]:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            (output,) = detector((frames,), mask, reflection)
        losses = detection_losses(output, targets)
        total = (losses.classification + losses.regression) / 100
        middle = time.perf_counter()
        total.backward()
        clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return middle - began, time.perf_counter() - middle

    step()  # the first one touches fresh memory
    steps = [step() for _ in range(repeats)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as counter:  # it holds memory of its own
        step()
    rate = matrix_rate(dtype)
    seconds = statistics.median(sum(s) for s in steps)
    return {
        "forward": statistics.median(s[0] for s in steps),
        "backward": statistics.median(s[1] for s in steps),
        "seconds": seconds,
        "gigabytes": peak / 1e9,
        "rate": rate,
        "share": counter.get_total_flops() / seconds / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--recompute", nargs="+", default=["none", "selective", "full"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--here", action="store_true", help="one variant, in this process")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.precisions[0], args.recompute[0], args.repeats)))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.repeats} steps each"
    )
    print(
        "| precision | recompute | step (forward + backward) | of the reference's 14.9 s "
        "| peak memory | matrix rate | share of it |\n|---|---|---|---|---|---|---|"
    )
    for precision in args.precisions:
        for recompute in args.recompute:
            command = [sys.executable, __file__, "--here", "--precisions", precision]
            command += ["--recompute", recompute, "--repeats", str(args.repeats)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            m = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {precision} | {recompute} "
                f"| {m['seconds']:.1f} s ({m['forward']:.1f} + {m['backward']:.1f}) "
                f"| {m['seconds'] / REFERENCE_SECONDS:.2f} | {m['gigabytes']:.1f} GB "
                f"| {m['rate'] / 1e9:.0f} GFLOP/s | {m['share']:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
