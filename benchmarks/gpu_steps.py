"""Time training steps and extraction of the published sizes on a GPU, with compiled blocks or not.

    python -m benchmarks.gpu_steps [--sizes s b l h v2-g] [--batch 2] [--recompute none]
    python -m benchmarks.gpu_steps --device cpu --sizes tiny      # only tries the script

In bf16, on windows of 768 frames of 160 px (or as a size has them) that are on the GPU already:
decoding and copying are not timed. A training step is a whole update as `train/engine/loop.py`
makes it; extraction is the backbone in eval mode, from pixels to features. Compiled means that
every block of the transformer and every adapter went through `torch.compile`, as with
`training.compile blocks`. Weights are random.

The share says how much of the card is used: the products and convolutions that a step needs, each
counted once even if it is recomputed, per second, of what a product of 8192³ reaches on the same
card. A variant that runs out of memory is reported, and the rest goes on. Every result is saved at
once.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.sizes import CLASSES, FILES, count_flops, experiment
from cache.address import VideoInfo
from configs.atomic import write_text
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import hold_frozen
from extract.backbone.precision import autocast
from extract.settings.backbone import Precision, RecomputeSetting
from train.config import Experiment
from train.data.batch import Batch
from train.data.items import VideoItem
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.device.compiling import compile_blocks
from train.device.memory import settle_recompute
from train.engine.loop import TrainingRun
from train.engine.session import make_accelerator, settle_device
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = tuple(f"class {i}" for i in range(CLASSES))
VIDEOS = 200  # of an epoch: as many as THUMOS-14 trains on
WARM_UP = 3  # steps; the first ones compile and choose kernels
SIDE = {"cuda": 8192, "cpu": 512}  # of the product that gives the matrix rate
# A CPU only tries the script: this one traces the same graphs and needs no compiler.
BACKENDS = {"cuda": "inductor", "cpu": "aot_eager"}

Step = Callable[[], Tensor]
Row = dict[str, Any]


def settings(
    size: str,
    batch: int,
    recompute: RecomputeSetting | None,
    out: str,
    precision: Precision = "bf16",
) -> Experiment:
    """Return a size's experiment as it is measured here; without `recompute`, with its own."""
    config = experiment(size)
    return replace(
        config,
        out=out,
        backbone=replace(config.backbone, recompute=recompute or config.backbone.recompute),
        training=replace(config.training, global_batch=batch, precision=precision),
    )


def settle(config: Experiment, device: str) -> Experiment:
    """Return an experiment with what a run on this device would choose where recompute is auto."""
    if config.backbone.recompute != "auto":
        return config
    with torch.device("meta"):
        detector = Detector(config, NAMES)
    gc.collect()  # the step before may still hold its weights
    settle_recompute(detector.streams, config, torch.device(device), 1)
    backbone = detector.streams[0].backbone
    assert isinstance(backbone, Backbone)
    return replace(config, backbone=replace(config.backbone, recompute=backbone.recompute))


def noise_batch(config: Experiment, device: str) -> Batch:
    """Return windows of noise with two actions each."""
    batch, steps = config.training.global_batch, config.sampling.window_size
    segments = torch.tensor([[0.1, 0.3], [0.5, 0.55]], device=device) * steps
    side = config.pixels.size
    pixels = torch.randint(
        256, (batch, 3, config.sampling.samples, side, side), dtype=torch.uint8, device=device
    )
    return Batch(
        videos=("noise",) * batch,
        windows=(),
        inputs=(pixels,),
        mask=torch.ones(batch, steps, dtype=torch.bool, device=device),
        reflection=torch.full((batch,), steps - 1.0, device=device),
        segments=((segments,) * batch,),
        labels=(torch.tensor([3, 4], device=device),) * batch,
    )


def noise_video(number: int, windows: float, actions: int, config: Experiment) -> VideoItem:
    """Return a video without a file that is so many windows long, with actions at even distances.

    Args:
        number: of the video, which its identity and its name are made of.
    """
    fps = config.sampling.fps or 25.0
    frames = round(windows * config.sampling.samples) * config.sampling.sample_step
    info = VideoInfo(f"{number:064x}", f"noise {number}", 1, frames, fps)
    starts = (np.arange(actions) + 0.5) / actions * 0.9
    segments = np.stack([starts, starts + 0.05], 1) * frames
    truth = segments, np.zeros(actions, np.int64), ()
    return VideoItem(
        *(info.name, Path(info.name), frames, frames / fps, fps, *truth),
        identity=info,
        sampling_fps=config.sampling.fps,
    )


def new_accelerator(config: Experiment, device: str) -> Accelerator:
    """Return a run's accelerator, in a process whose runs before had other precisions."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return make_accelerator(config, cpu=device == "cpu")


def build_training_step(config: Experiment, device: str, compiled: bool) -> Step:
    """Return a function that trains on a batch: the loop's own update."""
    run, batch = build_run(config, device, compiled), noise_batch(config, device)
    number = 0

    def step() -> Tensor:
        nonlocal number
        number += 1
        (done,) = run.update(number, [batch])
        return done.losses

    return step


def build_run(
    config: Experiment, device: str, compiled: bool, resume: bool = False
) -> TrainingRun[DetectionTask]:
    """Return a training run whose updates can be made, on batches that did not come from it."""
    with torch.device(device):
        detector = Detector(config, NAMES)
    if compiled:
        (stream,) = detector.streams
        assert isinstance(stream.backbone, Backbone)
        compile_blocks(stream.backbone, BACKENDS[device])
    video = noise_video(0, 1, 1, config)
    accelerator = new_accelerator(config, device)
    run = TrainingRun(
        DetectionTask(detector, [video] * VIDEOS, None, accelerator), accelerator, resume
    )
    run.wrapped.train()
    return run


def build_extraction_step(config: Experiment, device: str, compiled: bool) -> Step:
    """Return a function that computes the features of a batch."""
    settle_device(torch.device(device), config)
    with torch.device(device):
        backbone = Backbone(config.backbone).eval()
    hold_frozen(backbone, config.training.precision, config.pixels.size)
    if compiled:
        compile_blocks(backbone, BACKENDS[device])
    (pixels,) = noise_batch(config, device).inputs

    @torch.no_grad()
    def step() -> Tensor:
        with autocast(config.training.precision, torch.device(device)):
            return backbone(pixels)

    return step


def count_training_flops(config: Experiment) -> int:
    """Return the number of operations of a training step, each counted once."""
    config = replace(config, backbone=replace(config.backbone, recompute="none"))
    with torch.device("meta"):
        detector = Detector(config, NAMES).train()
        batch = noise_batch(config, "meta")
    points = pyramid_points(batch.mask.shape[1], config.head.levels, batch.mask.device)
    targets = assign_batch(points, batch.segments[0], batch.labels, CLASSES)

    def work() -> None:
        (output,) = detector(batch.inputs, batch.mask, batch.reflection)
        torch.stack(detection_losses(output, targets)).sum().backward()

    return count_flops(work)


def count_extraction_flops(config: Experiment) -> int:
    """Return the number of operations of an extraction."""
    with torch.device("meta"):
        backbone = Backbone(config.backbone).eval()
    (pixels,) = noise_batch(config, "meta").inputs
    with torch.no_grad():
        return count_flops(lambda: backbone(pixels))


WORKS = {
    "training": (build_training_step, count_training_flops),
    "extraction": (build_extraction_step, count_extraction_flops),
}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_step(step: Callable[[], object], device: str) -> float:
    synchronise(device)
    began = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - began


def count_compiled() -> int:
    """Return how many graphs torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def measure(build: Callable[[], Step], repeats: int, device: str) -> Row:
    """Return a variant's median time and peak memory, or why there is none.

    `recompiled` are graphs that were compiled when the variant was warm, which none should be.
    """
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    try:
        step = build()
        first = time_step(step, device)
        for _ in range(WARM_UP):
            step()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        compiled = count_compiled()
        taken = [time_step(step, device) for _ in range(repeats)]
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        if not step().isfinite().all():  # NaNs may be faster to compute with
            return {"failed": "the result is not finite"}
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except RuntimeError as error:  # a compiler's, too: later variants still count
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    return {
        "first_s": first,
        "step_s": statistics.median(taken),
        "peak_bytes": peak,
        "recompiled": count_compiled() - compiled,
    }


def compare_compiled(
    work: str, config: Experiment, repeats: int, device: str, where: Row
) -> Iterator[Row]:
    """Measure one kind of work without compiling and with it."""
    build, needed = WORKS[work]
    config = settle(config, device)
    batch, count = config.training.global_batch, needed(config)
    for compiled in (False, True):
        row: Row = {"work": work, "compiled": compiled, "batch": batch, "flops": count}
        row["recompute"] = config.backbone.recompute if work == "training" else None
        row |= measure(partial(build, config, device, compiled), repeats, device)
        if "failed" not in row:
            row["frames_per_s"] = batch * config.sampling.samples / row["step_s"]
            row["share"] = count / row["step_s"] / where["matrix_flops_per_s"]
        yield row


def matrix_rate(device: str) -> float:
    """Return floating-point operations per second of a large product in bf16, median of 20."""
    left, right = torch.randn(2, SIDE[device], SIDE[device], device=device, dtype=torch.bfloat16)
    taken = [time_step(lambda: left @ right, device) for _ in range(25)]
    return 2 * SIDE[device] ** 3 / statistics.median(taken[5:])


def driver_version() -> str | None:
    """Return the version of the GPU's driver; None if that cannot be read."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.splitlines()[0].strip()


def describe_machine(device: str, repeats: int) -> Row:
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "driver": driver_version() if on_gpu else None,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "matrix_side": SIDE[device],
        "matrix_flops_per_s": matrix_rate(device),
        "repeats": repeats,
    }


def results_table(where: Row, rows: list[Row]) -> str:
    """Return the table of results, below a line about the machine."""
    lines = [
        f"{where['device']}, driver {where['driver']}, torch {where['torch']}, {where['date']}; "
        f"a product of {where['matrix_side']}³ in bf16: "
        f"{where['matrix_flops_per_s'] / 1e12:.3g} TFLOP/s; medians of {where['repeats']} steps",
        "",
        f"{'size':5} {'work':10} {'blocks':8} {'recompute':9} {'windows':>7} {'a step':>10} "
        f"{'frames/s':>9} {'peak':>9} {'share':>6}",
    ]
    for row in rows:
        line = (
            f"{row['size']:5} {row['work']:10} {'compiled' if row['compiled'] else 'eager':8} "
            f"{row['recompute'] or '-':9} {row['batch']:7} "
        )
        if "failed" in row:
            lines.append(line + f"  {row['failed']}")
            continue
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f} GB"
        lines.append(
            line + f"{row['step_s'] * 1e3:7.1f} ms {row['frames_per_s']:9,.0f} {peak:>9} "
            f"{row['share']:6.0%}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--sizes", nargs="+", default=["s", "b", "l", "h"], choices=[*FILES, "tiny"]
    )
    parser.add_argument("--batch", type=int, default=1, help="windows of a step")
    parser.add_argument(
        "--recompute",
        choices=get_args(RecomputeSetting),
        help="auto: as a run would choose on this device; default: as each size's config has it",
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use; --device cpu --sizes tiny only tries the script")
    where, rows = describe_machine(args.device, args.repeats), list[Row]()
    name = "-".join(where["device"].lower().split())
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"gpu-{name}-{where['date']}"
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            config = settings(size, args.batch, args.recompute, folder)
            for work in WORKS:
                for row in compare_compiled(work, config, args.repeats, args.device, where):
                    rows.append({"size": size} | row)
                    text = results_table(where, rows)
                    write_text(file.with_name(f"{file.name}.txt"), text)
                    written = json.dumps(where | {"rows": rows}, indent=1)
                    write_text(file.with_name(f"{file.name}.json"), written + "\n")
                    print(text if len(rows) == 1 else text.splitlines()[-1], flush=True)
    print(f"\n{file}.txt, {file}.json")


if __name__ == "__main__":
    main()
