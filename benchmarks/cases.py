"""One measurement of our side of a comparison, in this process; `benchmarks.compare` starts it.

Prints JSON. Imports nothing of benchmarks/ or tests/, so that it measures the code of another
commit as well, which stands first on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evaluate.annotations import Detection, Segment
    from train.config import Experiment

Found = dict[str, Any]
"""Seconds, processor seconds, and what came out, which other code should give, too."""

HOME = Path(__file__).resolve().parent.parent
# Of the commit that is measured.
CONFIG = "configs/e2e/thumos14/videomae_s_adapter_forward.yaml"
DEMO = "configs/e2e/demo/forward.yaml"
FRAMES, SIZE, CLASSES = 192, 160, 20
HEAD_BATCH, HEAD_STEPS = 2, 768
PREDICTIONS, VIDEOS = 42_000, 210  # as of the THUMOS-14 test videos
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
LENGTH_S, ACTIONS = 240.0, 15
SUPPRESSED: dict[str, tuple[int, int, Found]] = {  # candidates, classes, settings
    "2,000 of 20 classes": (2_000, 20, {}),
    "6,000 of 20 classes": (6_000, 20, {}),
    "20,000 of 20 classes": (20_000, 20, {}),
    "40,000 of 20 classes": (40_000, 20, {}),
    "80,000 of 20 classes": (80_000, 20, {}),
    "6,000, all with all": (6_000, 20, {"multiclass": False}),
    "40,000, all with all": (40_000, 20, {"multiclass": False}),
    "6,000, hard": (6_000, 20, {"method": "hard"}),
    "6,000, with votes": (6_000, 20, {"multiclass": False, "voting_threshold": 0.7}),
}


class Done(BaseException):
    """Ends a run of which enough was seen."""


def repeat(work: Callable[[], float], repeats: int) -> Found:
    """Return the medians of some repeats, after one that does not count, and the last result."""
    work()  # touches fresh memory, imports, compiles
    seconds, busy = list[float](), list[float]()
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        result = work()
        seconds.append(time.perf_counter() - began[0])
        busy.append(time.process_time() - began[1])
    return {
        "seconds": statistics.median(seconds),
        "cpu_s": statistics.median(busy),
        "result": result,
    }


def whole_process(began: float, result: Any) -> Found:
    """Return what this process and those that it started have taken since they began."""
    cpu_s = time.process_time() + sum(map(_process_seconds, _descendants(os.getpid())))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s += ended.ru_utime + ended.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu_s": cpu_s, "result": result}


def _descendants(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:  # it ended, or this is not Linux
        return []
    return [*children, *(below for child in children for below in _descendants(child))]


def _process_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def step_config(recompute: str) -> Experiment:
    """Return the experiment of VideoMAE-S with 12 adapters on one window of 192 frames, 160 px."""
    from configs.loader import load
    from train.config import Experiment

    overrides = [f"--sampling.window_size={FRAMES}", f"--backbone.recompute={recompute}"]
    config = load(Experiment, CONFIG, [*overrides, "--backbone.weights=null"])
    return replace(config, pixels=replace(config.pixels, size=SIZE))


def measure_step(args: argparse.Namespace) -> Found:
    """A whole training step of VideoMAE-S: forward, losses, backward, clipping, AdamW.

    The result holds the share of the machine's matrix rate, which is measured right after.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_
    from torch.utils.flop_counter import FlopCounterMode

    from train.detector.model import Detector
    from train.detector.training import build_optimizer
    from train.modeling.losses import detection_losses
    from train.modeling.points import assign_batch, pyramid_points

    config, half = step_config(args.recompute), args.precision == "bf16"
    torch.manual_seed(0)
    detector = Detector(config, tuple(f"class {i}" for i in range(CLASSES))).train()
    optimizer = build_optimizer(detector, config.training)
    frames = torch.randint(0, 256, (1, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8)
    mask, reflection = torch.ones(1, FRAMES, dtype=torch.bool), torch.tensor([FRAMES - 1.0])
    segments, labels = (torch.tensor([[20.0, 60.0], [90.0, 100.0]]),), (torch.tensor([3, 4]),)
    points = pyramid_points(FRAMES, config.head.levels, torch.device("cpu"))
    targets = assign_batch(points, segments, labels, CLASSES)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (output,) = detector((frames,), mask, reflection)
        losses = detection_losses(output, targets)
        total = (losses.classification + losses.regression) / 100
        total.backward()
        clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    found = repeat(step, args.repeats)
    found["peak_bytes"] = peak_bytes()  # what follows holds memory of its own
    with FlopCounterMode(display=False) as counter:
        step()
    rate = matrix_rate(torch.bfloat16 if half else torch.float32)
    share = counter.get_total_flops() / found["seconds"] / rate
    found["result"] = {"loss": found["result"], "matrix_rate": rate, "share": share}
    return found


def matrix_rate(dtype: Any) -> float:
    """Return floating-point operations per second of a 2048³ product, median of 9."""
    import torch

    left, right = torch.randn(2, 2048, 2048).to(dtype)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(seconds[1:])


def measure_backbone(args: argparse.Namespace) -> Found:
    """The features of one window, VideoMAE-S with 12 adapters, as in a test."""
    import torch

    from extract.backbone.backbone import Backbone

    torch.manual_seed(0)
    backbone = Backbone(step_config("none").backbone).eval()
    frames = torch.randint(0, 256, (1, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8)

    @torch.no_grad()
    def work() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            return float(backbone(frames).float().norm())

    return repeat(work, args.repeats)


def measure_head(args: argparse.Namespace) -> Found:
    """An update of the THUMOS-14 head: 2 windows of 768 steps of VideoMAE-S's features."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    from train.modeling.actionformer import ActionFormer
    from train.modeling.losses import detection_losses
    from train.modeling.points import assign_batch, pyramid_points

    config = step_config("none")
    torch.manual_seed(0)
    head = ActionFormer(config.backbone.width, CLASSES, config.head).train()
    optimizer = torch.optim.AdamW(head.parameters(), config.training.lr, fused=True)
    features = torch.randn(HEAD_BATCH, config.backbone.width, HEAD_STEPS)
    mask = torch.ones(HEAD_BATCH, HEAD_STEPS, dtype=torch.bool)
    points = pyramid_points(HEAD_STEPS, config.head.levels, torch.device("cpu"))
    segments = (torch.tensor([[80.0, 240.0], [400.0, 430.0]]),) * HEAD_BATCH
    labels = (torch.tensor([3, 4]),) * HEAD_BATCH

    def update() -> float:
        targets = assign_batch(points, segments, labels, CLASSES)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            output = head(features, mask)
        loss = torch.stack(detection_losses(output, targets)).sum() / 100
        loss.backward()
        clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return repeat(update, args.repeats)


def candidates(
    count: int, classes: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return segments [count, 2], scores [count] and labels [count]: half near actions.

    As a detector's: around some actions of few classes, and everywhere with low scores.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    begin, length = rng.uniform(0, LENGTH_S, ACTIONS), rng.gamma(2.0, 3.0, ACTIONS)
    action = rng.integers(ACTIONS, size=count)
    near = rng.random(count) < 0.5
    start = np.where(near, rng.normal(begin[action], 1), rng.uniform(0, LENGTH_S, count))
    long = np.where(near, length[action] * rng.lognormal(0, 0.3, count), rng.gamma(2, 3, count))
    scores = np.where(near, rng.beta(1, 3, count), rng.beta(0.5, 20, count))
    labels = np.where(near, action % min(classes, 3), rng.integers(classes, size=count))
    segments = np.stack([start, start + long], 1).astype(np.float32)
    return segments, scores.astype(np.float32), labels


def measure_nms(args: argparse.Namespace) -> Found:
    """Suppression of one video, by number of candidates, classes and method.

    The result holds milliseconds of CPU of each, and of a program's first call.
    """
    from evaluate.nms import NmsConfig, suppress

    def sum_of_scores(segments: Any, scores: Any, labels: Any, config: NmsConfig) -> float:
        return float(suppress(segments, scores, labels, config)[1].sum())

    began = time.process_time()
    suppress(*candidates(10, 2), NmsConfig())
    first = 1000 * (time.process_time() - began)
    each, sums = dict[str, float](), dict[str, float]()
    seconds = cpu_s = 0.0
    for name, (count, classes, options) in SUPPRESSED.items():
        video, config = candidates(count, classes), NmsConfig(**options)
        found = repeat(partial(sum_of_scores, *video, config), args.repeats)
        each[name], sums[name] = 1000 * found["cpu_s"], found["result"]
        seconds, cpu_s = seconds + found["seconds"], cpu_s + found["cpu_s"]
    result = {"cpu_ms": each, "first call, cpu_ms": first, "sums of scores": sums}
    return {"seconds": seconds, "cpu_s": cpu_s, "result": result}


def make_truth(seed: int) -> dict[str, tuple[Segment, ...]]:
    """Return actions of as many videos as THUMOS-14's test subset has."""
    import numpy as np

    from evaluate.annotations import Segment

    rng, truth = np.random.default_rng(seed), dict[str, tuple[Segment, ...]]()
    for number in range(VIDEOS):
        starts = rng.uniform(0, LENGTH_S, rng.integers(1, 2 * ACTIONS)).tolist()
        label = f"class {number % CLASSES}"
        truth[f"video {number}"] = tuple(
            Segment(label, start, start + float(rng.gamma(2.0, 3.0))) for start in starts
        )
    return truth


def make_predictions(
    truth: dict[str, tuple[Segment, ...]], per_video: int, rng: np.random.Generator
) -> dict[str, list[Detection]]:
    """Return `per_video` detections for every video, half near the truth."""
    import numpy as np

    from evaluate.annotations import Detection

    found: dict[str, list[Detection]] = {}
    for video, segments in truth.items():
        found[video] = []
        for row in range(per_video):
            label, start, end = segments[rng.integers(len(segments))]
            spread = (0.2 if row % 2 else 2.0) * (end - start)
            start, end = sorted(np.array([start, end]) + rng.normal(0, spread, 2))
            found[video].append(Detection(label, max(start, 0.0), max(end, 0.0), rng.random()))
    return found


def measure_map(args: argparse.Namespace) -> Found:
    """The mAP of 42,000 predictions over 210 videos, at 5 tIoUs."""
    import numpy as np

    from evaluate.annotations import read_annotations, select_videos
    from evaluate.mean_ap import mean_average_precision

    truth = make_truth(0)
    if args.annotations:
        videos = select_videos(read_annotations(args.annotations), "test")
        truth = {video.name: video.segments for video in videos if video.segments}
    found = make_predictions(truth, PREDICTIONS // len(truth), np.random.default_rng(0))
    return repeat(lambda: mean_average_precision(truth, found, TIOUS).average, args.repeats)


def measure_data(args: argparse.Namespace) -> Found:
    """A training window of THUMOS-14's recipe, from the file to the network's input."""
    import numpy as np
    import torch

    from train.data.batch import collate
    from train.data.video_files import probe_item
    from train.data.windows import TrainingWindows, WindowInputs

    torch.set_num_threads(1)  # as a worker has
    item = probe_item(args.video)
    actions = np.array([[0.45, 0.55]]) * item.frames
    items = [replace(item, segments=actions, labels=np.zeros(1, np.int64))]
    dataset = TrainingWindows(items, WindowInputs.of(step_config("none")))

    def work() -> float:
        batch = collate([dataset[(0, 0)]]).augmented()
        return float(batch.inputs[0].float().mean())

    found = repeat(work, args.repeats)
    return found | {"result": {"mean level": found["result"], "frames": FRAMES}}


def measure_video(args: argparse.Namespace) -> Found:
    """Detection in one video by the demo's network, with random weights."""
    import torch

    from configs.loader import load
    from train.config import Experiment
    from train.data.video_files import probe_item
    from train.detector.model import Detector

    config = load(Experiment, DEMO, ["--backbone.weights=null"])
    torch.manual_seed(0)
    detector = Detector(config, tuple(f"class {i}" for i in range(CLASSES))).eval()
    item = probe_item(args.video, config.sampling.fps)

    def work() -> float:
        (found,) = detector.detect_with_scores(item).detections.values()
        return sum(detection.score for detection in found)

    found = repeat(work, args.repeats)
    return found | {"result": {"sum of scores": found["result"], "video_s": item.duration_s}}


def demo_config(args: argparse.Namespace, out: str) -> Experiment:
    from configs.loader import load
    from train.config import Experiment

    data = args.data.resolve()
    overrides = [
        f"--out={out}",
        f"--data.annotations={data / 'annotations.json'}",
        f"--data.videos={data / 'videos'}",
        f"--data.classes={data / 'classes.txt'}",
        f"--training.stop_epoch={args.epochs}",
        f"--training.validate_every={args.epochs}",
        f"--training.validate_from={args.epochs}",
    ]
    if args.frame_cache:  # as `make demo` has it
        overrides.append(f"--data.frame_cache={out}/frames")
    return load(Experiment, DEMO, overrides)


def measure_demo(args: argparse.Namespace) -> Found:
    """Some epochs of the demo's training, then its validation, start and end included."""
    began = time.perf_counter()
    from evaluate.reports.metrics_file import METRICS, read_metrics
    from train.e2e import train_end_to_end

    with TemporaryDirectory() as out:
        train_end_to_end(demo_config(args, out), resume=False)
        lines = read_metrics(Path(out, METRICS))
        losses = [line["loss"] for line in lines if "loss" in line]
        checks = [line["validation"] for line in lines if "validation" in line]
        return whole_process(began, {"loss": losses[-1], "validation": checks[-1]})


def measure_start(args: argparse.Namespace) -> Found:
    """From the command to the demo's first training step, worker included."""
    began, found = time.perf_counter(), Found()
    from train.e2e import train_end_to_end
    from train.engine.loop import TrainingRun

    update = TrainingRun.update

    def update_once(run: Any, step: int, batches: Any) -> Any:
        (done,) = update(run, step, batches)
        found.update(whole_process(began, {"loss": float(done.losses.sum())}))
        raise Done

    TrainingRun.update = update_once  # type: ignore[assignment]
    with TemporaryDirectory() as out:
        try:
            train_end_to_end(demo_config(args, out), resume=False)
        except Done:
            return found
    raise AssertionError("no step was made")


def write_checkpoint(args: argparse.Namespace) -> Found:
    """Write a detector of the demo with random heads; its detections mean nothing."""
    import torch

    from configs.loader import load
    from train.config import Experiment
    from train.detector.model import Detector
    from train.engine.checkpoint import Checkpoint, save_checkpoint

    config = load(Experiment, DEMO, ["--evaluation.min_score=0.01"])
    torch.manual_seed(0)
    detector = Detector(config, tuple(f"class {i}" for i in range(6)))
    detector.load_pretrained()
    state = detector.state_dict()
    save_checkpoint(args.checkpoint, Checkpoint(config, detector.classes, state, state, {}))
    return {}


def measure_detection(args: argparse.Namespace) -> Found:
    """From the command to the segments of a video that was never looked at before."""
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        from evaluate import detect

        sys.argv = ["detect.py", str(args.video), "--checkpoint", str(args.checkpoint)]
        detect.main()
        return whole_process(began, {})


CASES: dict[str, Callable[[argparse.Namespace], Found]] = {
    "step": measure_step,
    "backbone": measure_backbone,
    "head": measure_head,
    "nms": measure_nms,
    "map": measure_map,
    "data": measure_data,
    "video": measure_video,
    "demo": measure_demo,
    "start": measure_start,
    "detection": measure_detection,
}


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def at_least_one(text: str) -> int:
    """Return a number of the command line that is 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is measured."""
    parser.add_argument(
        "--repeats", type=at_least_one, default=5, help="in a process, after one more"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--recompute", choices=["none", "selective", "full"], default="none")
    parser.add_argument("--annotations", type=Path, help="of map: a dataset's, not made-up ones")
    parser.add_argument("--video", type=Path, help="of data, video and detection")
    text = "of detection: this one, not one of random heads that each side writes for itself"
    parser.add_argument("--checkpoint", type=Path, help=text)
    parser.add_argument("--data", type=Path, default=HOME / "data/demo", help="of demo and start")
    parser.add_argument("--epochs", type=at_least_one, default=2, help="of demo")
    parser.add_argument("--frame_cache", action="store_true", help="of demo, ours: decode once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("case", choices=[*CASES, "checkpoint"])
    add_options(parser)
    args = parser.parse_args()
    found = write_checkpoint(args) if args.case == "checkpoint" else CASES[args.case](args)
    print(json.dumps({"peak_bytes": peak_bytes()} | found))


if __name__ == "__main__":
    main()
