"""Split a training run into its stages: a table, the operators of each, stacks for a flame graph.

    python -m benchmarks.profile configs/e2e/demo/forward.yaml --out FOLDER
    python -m benchmarks.profile FILE --out FOLDER --videos 4 --training.precision fp32
    python -m benchmarks.profile FILE --out FOLDER --heads URL    # the head alone, from a cache

Runs the training of any config of detectors or of recognition as its script does: `--epochs` of
it, on at most `--videos` of a subset, then one validation. All is done in this process
(training.workers 0), so that decoding is seen, too. Any setting of the config can be overridden by
its dotted name. Written into the folder:

    profile.md    seconds and processor time of each stage, and its operators by torch.profiler
    profile.json  the same numbers
    stacks.txt    where Python was, in microseconds ("collapsed stacks": open it at speedscope.app,
                  or with flamegraph.pl)

A stage is timed from its beginning to its end, without the stages inside it. Processor time is that
of all threads. On a device the host waits for it where a stage ends, so that its work counts for
the stage that gave it: no copy then runs beside a step, and the run takes longer than another.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

REPOSITORY = Path(__file__).resolve().parent.parent
START_UP, PASSES, TRAINING, VALIDATION = "start-up", "passes", "training", "validation"
SAVING, REPORT = "checkpoints", "report"
PROFILED = "under torch.profiler"  # not in the table: the profiler itself takes time
PROFILED_UPDATES = 2  # the last ones
IMPORTS, REST = "imports", "rest"
SAMPLE_S = 0.005
SHOWN_OPERATORS = 8  # of a stage
LEAST_SHARE = 0.001  # of all time: rarer stacks are left out

GROUPS = {
    "train.engine.loop:TrainingRun.train": TRAINING,
    "train.engine.loop:TrainingRun._validate": VALIDATION,
    "train.engine.loop:TrainingRun.save": SAVING,
    "train.engine.session:write_training_report": REPORT,
    "train.detector.cached_training:ensure_cached": PASSES,
}
FUNCTIONS = {
    "train.detector.setup:load_subsets": "look at files",
    "train.detector.setup:load_annotations": "look at files",
    "extract.video.reader:VideoReader.__init__": "decode",
    "extract.sampling.window_frames:shrink_frames": "resize",
    "extract.sampling.window_frames:crop_frames": "resize",
    "train.data.batch:Batch.augmented": "augment",
    "train.data.batch:Batch.to": "transfer",
    "train.data.windows:sample_inputs": "read the cache",
    "train.detector.training:DetectionTask.prepare": "losses",
    "train.detector.training:DetectionTask.loss": "losses",
    "train.recognition.training:RecognitionTask.prepare": "transfer",
    "train.recognition.training:RecognitionTask.loss": "losses",
    "accelerate:Accelerator.backward": "losses",  # and from there on back to the backbone
    "train.engine.loop:clip_grad_norm_": "optimizer",
    "train.engine.loop:step_optimizer": "optimizer",
    "torch.optim:Optimizer.zero_grad": "optimizer",
    "train.engine.optim:Average.update": "averaging",
    "train.detector.detection:merge_windows": "suppression",
    "train.detector.training:score_detections": "scoring",
}
ITERATORS = {"extract.video.reader:VideoReader.chunks": "decode"}
MARK = "stage: "  # what the profiler sees where a stage begins

Key = tuple[str, str]
"""A group of stages, such as training, and a stage in it."""


class Stages:
    """Seconds and processor time by group and stage; every moment belongs to the innermost stage.

    Attributes:
        current: the group and stage that time counts for now.
        settle: waits for the device, before a clock is read.
        mark: told of each change.
        taken: seconds and processor seconds; `calls`: how often a stage began.
    """

    def __init__(self, group: str) -> None:
        self.current: Key = (group, REST)
        self.settle: Callable[[], object] = lambda: None
        self.mark: Callable[[Key], object] = lambda key: None
        self.taken: dict[Key, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.calls: Counter[Key] = Counter()
        self._main = threading.get_ident()
        # What the process took before it came here belongs to the first stage.
        self._since = time.perf_counter(), 0.0

    def switch(self, key: Key) -> None:
        """Count time for another stage from now on."""
        self.settle()
        now = time.perf_counter(), time.process_time()
        for place, (end, begin) in enumerate(zip(now, self._since, strict=True)):
            self.taken[self.current][place] += end - begin
        self.current, self._since = key, now
        self.mark(key)

    def begin(self, stage: str) -> Key:
        """Count time for a stage of the group; return what it counted for before."""
        outer = self.current
        self.switch((outer[0], stage))
        self.calls[self.current] += 1
        return outer

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count time for a stage of the group during the context.

        Of a thread beside the main one the processor time moves there from what the main one does.
        """
        if threading.get_ident() != self._main:
            began = time.thread_time()
            yield
            own, main = (self.current[0], name), self.current
            self.taken[own][1] += time.thread_time() - began
            self.taken[main][1] -= time.thread_time() - began
            self.calls[own] += 1
            return
        outer = self.begin(name)
        try:
            yield
        finally:
            self.switch(outer)

    @contextmanager
    def group(self, name: str) -> Iterator[None]:
        """Count time for a group of stages during the context."""
        outer = self.current
        self.switch((name, REST))
        try:
            yield
        finally:
            self.switch(outer)


class Sampler:
    """Notes every few milliseconds where the main thread is.

    A timer's signal interrupts that thread itself between two of its steps: another thread that
    walks its frames (`sys._current_frames`) can find them freed meanwhile.

    Attributes:
        stacks: microseconds by the stage and the functions, outermost first.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages, self.stacks = stages, Counter[tuple[str, ...]]()

    def start(self) -> None:
        self._last = time.perf_counter()
        self._before = signal.signal(signal.SIGALRM, self._note)
        signal.siginterrupt(signal.SIGALRM, False)  # calls of the system go on after it
        signal.setitimer(signal.ITIMER_REAL, SAMPLE_S, SAMPLE_S)

    def _note(self, number: int, frame: FrameType | None) -> None:
        names = list[str]()
        while frame is not None:
            if name := function_name(frame.f_code.co_filename, frame.f_code.co_name):
                names.append(name)
            frame = frame.f_back
        now = time.perf_counter()
        # Signals wait while a library computes: its time counts for the function that called it.
        self.stacks[*self.stages.current, *reversed(names)] += round(1e6 * (now - self._last))
        self._last = now

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


@functools.cache
def function_name(file: str, function: str) -> str | None:
    """Return a function's name for a flame graph; None for what is not of interest."""
    if (
        file == __file__
        or file.startswith("<frozen ")
        or Path(file).stem in ("contextlib", "runpy")
    ):
        return None
    homes = [str(REPOSITORY), *filter(None, sys.path)]
    home = max((h for h in homes if file.startswith(f"{h}{os.sep}")), key=len, default="")
    return f"{file.removeprefix(home).lstrip(os.sep)}:{function}".replace(";", ",")


def timed_items(stages: Stages, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function whose items' time counts for a stage, without what is done with them."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items, end = function(*args, **kwargs), object()
        while True:
            with stages.stage(name):
                item = next(items, end)
            if item is end:
                return
            yield item

    return wrapper


@contextmanager
def instrumented(stages: Stages) -> Iterator[list[FunctionEvent]]:
    """Make the loop tell the stages what it does; yield the profiled operators, filled later."""
    from train.engine.loop import TrainingRun

    events = list[Any]()
    kinds: list[tuple[dict[str, str], Callable[..., Any]]] = [
        (GROUPS, lambda function, name: stages.group(name)(function)),
        (FUNCTIONS, lambda function, name: stages.stage(name)(function)),
        (ITERATORS, lambda function, name: timed_items(stages, function, name)),
    ]
    build, update = TrainingRun.__init__, TrainingRun.update

    def build_watched(run: Any, *args: Any, **kwargs: Any) -> None:
        build(run, *args, **kwargs)
        if (total := run.epochs * run.updates) <= PROFILED_UPDATES:
            raise ValueError(
                f"the last {PROFILED_UPDATES} updates go to torch.profiler, and this run has "
                f"{total}: none is left to time; raise --epochs"
            )
        device = run.accelerator.device
        if device.type != "cpu":
            import torch

            stages.settle = lambda: torch.accelerator.synchronize(device)
        for name, module in parts_of(run.task.model):
            watch_module(stages, module, name)

    def update_profiled(run: Any, step: int, batches: Sequence[Any]) -> Any:
        if step < run.epochs * run.updates - PROFILED_UPDATES:
            return update(run, step, batches)
        with stages.group(PROFILED), profiled(stages, events):
            return update(run, step, batches)

    with ExitStack() as patches:
        for places, wrap in kinds:
            for place, name in places.items():
                module, _, path = place.partition(":")
                if module not in sys.modules:  # this run does not use it
                    continue
                *owners, attribute = path.split(".")
                owner = functools.reduce(getattr, owners, import_module(module))
                changed = wrap(getattr(owner, attribute), name)
                patches.enter_context(patch.object(owner, attribute, changed))
        patches.enter_context(patch.object(TrainingRun, "__init__", build_watched))
        patches.enter_context(patch.object(TrainingRun, "update", update_profiled))
        yield events


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a network whose work is a stage, by its name."""
    for stream in getattr(model, "streams", ()):
        yield "backbone", stream.backbone
        yield "head", stream.head
    if not hasattr(model, "streams"):
        yield "backbone", model
    elif model.fusion is not None:
        yield "fusion", model.fusion


def watch_module(stages: Stages, module: Any, name: str) -> None:
    """Count a module's work, forward and back, for a stage.

    Its way back begins when the first gradient of its outputs is there.
    """
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    outer = list[Key]()

    def begin(*_: Any) -> None:
        outer.append(stages.begin(name))

    def end(module: Any, args: Any, output: Any) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda gradient: stages.switch((stages.current[0], name)))
        stages.switch(outer.pop())

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


@contextmanager
def profiled(stages: Stages, events: list[Any]) -> Iterator[None]:
    """Collect the operators of the context, with a mark wherever a stage begins."""
    import torch

    def mark(key: Key) -> None:
        with torch.profiler.record_function(f"{MARK}{key[1]}"):
            pass

    with torch.profiler.profile() as profiler:
        stages.mark = mark
        mark(stages.current)
        try:
            yield
        finally:
            stages.mark = lambda key: None
    events.append(list(profiler.events()))


def operators_by_stage(runs: Sequence[Sequence[Any]]) -> dict[str, dict[str, list[float]]]:
    """Return each stage's operators: calls, milliseconds on the host and on the device, each once.

    Args:
        runs: of the profiler; its events.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for events in runs:
        stage = REST
        for event in sorted(events, key=lambda event: event.time_range.start):
            if event.name.startswith(MARK):
                stage = event.name.removeprefix(MARK)
            elif event.device_type.name == "CPU":
                numbers = found[stage][event.name]
                numbers[0] += 1
                numbers[1] += event.self_cpu_time_total / 1e3
                numbers[2] += event.self_device_time_total / 1e3
    return {stage: dict(each) for stage, each in found.items()}


def format_table(stages: Stages, updates: int) -> str:
    """Return the stages as a Markdown table; of training also the processor time of an update."""
    rows: list[tuple[Key, float, float]] = [
        (key, wall, cpu) for key, (wall, cpu) in stages.taken.items() if key[0] != PROFILED
    ]
    seconds, busy = sum(row[1] for row in rows), sum(row[2] for row in rows)
    lines = [
        "| | stage | seconds | CPU, s | share of CPU | an update, ms of CPU |",
        "|---" * 6 + "|",
    ]
    for group in dict.fromkeys(key[0] for key, *_ in rows):
        mine = [row for row in rows if row[0][0] == group]
        total = (group, "**in all**"), sum(row[1] for row in mine), sum(row[2] for row in mine)
        for (_, name), wall, cpu in (*sorted(mine, key=lambda row: -row[2]), total):
            each = f"{1000 * cpu / updates:.1f}" if group == TRAINING else ""
            share = f"{cpu / busy:.1%}"
            lines.append(f"| {group} | {name} | {wall:.2f} | {cpu:.2f} | {share} | {each} |")
    return "\n".join([*lines, f"| all | | {seconds:.2f} | {busy:.2f} | | |"]) + "\n"


def format_operators(operators: dict[str, dict[str, list[float]]]) -> str:
    """Return the operators that take most time in each stage, as a Markdown table."""
    lines = ["| stage | operator | calls | ms, host | ms, device |", "|---" * 5 + "|"]
    for stage, found in operators.items():
        most = sorted(found.items(), key=lambda item: -max(item[1][1:]))[:SHOWN_OPERATORS]
        for name, (calls, host, device) in most:
            numbers = [x / PROFILED_UPDATES for x in (calls, host, device)]
            lines.append(f"| {stage} | {name} | {' | '.join(f'{x:.1f}' for x in numbers)} |")
    return "\n".join(lines) + "\n"


def format_stacks(stacks: Counter[tuple[str, ...]]) -> str:
    """Return stacks as lines of functions with microseconds, without rare ones."""
    least = LEAST_SHARE * stacks.total()
    kept = sorted((stack, time) for stack, time in stacks.items() if time >= least)
    return "".join(f"{';'.join(stack)} {time}\n" for stack, time in kept)


def shortened(select: Callable[..., list[Any]], videos: int) -> Callable[..., list[Any]]:
    """Return a function that selects at most so many videos of a subset, the first ones."""
    return lambda *args: select(*args)[:videos]


def experiment_kind(file: str) -> type:
    """Return the dataclass of a config: of detectors, or of recognition."""
    from configs.loader import check_names
    from train.config import Experiment
    from train.recognition.config import Recognition

    try:
        check_names(Experiment, file)
    except ValueError:
        try:
            check_names(Recognition, file)
        except ValueError:
            return Experiment  # whose reader says what is wrong
        return Recognition
    return Experiment


def with_lengths(config: Any, epochs: int, out: str) -> Any:
    """Return a config that trains for so many epochs, then validates, all in one process."""
    training = replace(
        config.training,
        updates=None,
        stop_epoch=epochs,
        validate_every=epochs,
        validate_from=epochs,
        workers=0,
    )
    return replace(config, training=training, out=out)


def imported_by(config: Any, heads: str | None) -> tuple[str, ...]:
    """Return the modules that import all that a run needs."""
    from train.config import Experiment

    if not isinstance(config, Experiment):
        return "train.engine.session", "train.recognition.setup", "train.recognition.training"
    detection = "train.engine.session", "train.detector.sources", "train.detector.training"
    return (*detection, "train.detector.cached_training") if heads else detection


def run_training(config: Any, heads: str | None, file: str) -> None:
    """Train as the config's script does; of detectors on a cache if one is named."""
    from train.config import Experiment

    if not isinstance(config, Experiment):
        from train.recognise import train_recogniser

        train_recogniser(config, resume=False)
    elif heads:
        from train.detector.setup import freeze_by_default
        from train.heads import train_heads

        cached = replace(config.cache, url=heads)
        frozen = replace(config, backbone=freeze_by_default(config.backbone), cache=cached)
        train_heads(frozen, (), file, resume=False)
    else:
        from train.detector.setup import check_has_pixels
        from train.e2e import train_end_to_end

        check_has_pixels(config.backbone)
        train_end_to_end(config, resume=False)


def describe_machine() -> str:
    """Return the machine, what else it does, and the day, in a line."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{date.today().isoformat()}, {os.cpu_count()} cores ({device}), load "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def main() -> None:
    stages = Stages(START_UP)
    sampler = Sampler(stages)
    sampler.start()
    try:
        out, events, what = run_profiled(stages)
    finally:
        sampler.end()  # Python forgets who handles a signal before it ends: the next would kill it
    write_profile(out, stages, events, sampler.stacks, what)


def run_profiled(stages: Stages) -> tuple[Path, list[FunctionEvent], str]:
    """Run what the command line asks for; return --out, the operators, and what was run."""
    with stages.stage(IMPORTS):
        from benchmarks.cases import at_least_one
        from configs.loader import load
        from configs.options import ScriptParser

        named = sys.argv[1] if len(sys.argv) > 1 else "--"
        parser = ScriptParser(__doc__, experiment_kind(named))
    parser.add_argument("config", help="YAML file of the experiment")
    parser.add_argument("--out", type=Path, required=True, help="folder for what was found")
    parser.add_argument(
        "--epochs", type=at_least_one, default=1, help="to train (default: %(default)s)"
    )
    parser.add_argument("--videos", type=at_least_one, help="of a subset, at most (detectors)")
    parser.add_argument("--heads", metavar="URL", help="train the head alone, on this cache")
    args, overrides = parser.parse()
    config: Any = load(experiment_kind(args.config), args.config, overrides)
    with stages.stage(IMPORTS):
        # All that the run imports, so that nothing of it is found in other stages.
        for module in imported_by(config, args.heads):
            import_module(module)
    with TemporaryDirectory() as folder, instrumented(stages) as events, ExitStack() as few:
        if args.videos is not None:
            from evaluate.annotations import select_videos
            from train.data import videos

            changed = shortened(select_videos, args.videos)
            few.enter_context(patch.object(videos, "select_videos", changed))
        run_training(with_lengths(config, args.epochs, folder), args.heads, args.config)
        stages.switch((REPORT, REST))
    return args.out, events, f"{args.config} {' '.join(overrides)}"


def write_profile(
    out: Path, stages: Stages, events: Sequence[Any], stacks: Counter[tuple[str, ...]], what: str
) -> None:
    """Write what was found into a folder, and print its table."""
    updates = stages.calls[TRAINING, "averaging"]
    table, operators = format_table(stages, updates), operators_by_stage(events)
    about = f"{what.strip()}: {updates} updates; {describe_machine()}"
    text = f"{about}\n\n{table}\nOperators of an update:\n\n{format_operators(operators)}"
    numbers = [
        {
            "group": key[0],
            "stage": key[1],
            "seconds": wall,
            "cpu_s": cpu,
            "calls": stages.calls[key],
        }
        for key, (wall, cpu) in stages.taken.items()
    ]
    found = {"about": about, "updates": updates, "stages": numbers, "operators": operators}
    out.mkdir(parents=True, exist_ok=True)
    (out / "profile.md").write_text(text, encoding="utf-8")
    (out / "profile.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "stacks.txt").write_text(format_stacks(stacks), encoding="utf-8")
    print(f"\n{about}\n\n{table}\n{out / 'profile.md'}, {out / 'stacks.txt'}")


if __name__ == "__main__":
    from configs import cli

    cli.run(main)
