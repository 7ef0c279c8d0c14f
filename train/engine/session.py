"""Start and end of every run: processes, its folder, its cache, its record."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    set_seed,
)
from torch import nn

from cache.store import open_cache
from configs.messages import format_error
from evaluate.reports.launches import (
    FINISHED,
    INTERRUPTED,
    new_launch,
    read_launches,
    write_launches,
)
from evaluate.reports.page import REPORT
from evaluate.reports.training import write_training_report
from extract.activations.stored import Counts
from extract.backbone.precision import set_precision
from extract.parallel.processes import (
    broadcast_object,
    connect,
    describe_little_shm,
    gather_objects,
    processes_here,
)
from train.config import Trained
from train.device.allocator import keep_freed_memory
from train.engine.run_folder import check_checkpoint_space, claim_folder
from train.engine.stopwatch import START_UP, Stopwatch
from train.tracking.trackers import check_trackers

PASSES = "passes"  # the stage in which missing activations are computed
# Waiting for more than a step is `extract.parallel.processes`'s. That a decoder hangs in a long
# window is noticed after a quarter of an hour.
WAIT_IN_STEP = timedelta(minutes=30)


@dataclass
class Notes:
    """Facts for a run's report: about its data and model, and counts of cached activations."""

    about: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, Counts] = field(default_factory=dict)


class Session:
    """One launch of a training run: a context that closes its store at the end.

    All processes create one, which seeds all random numbers.

    Args:
        config: the experiment; files are written into `config.out`.
        resume: whether to continue a run that is there.
        cache: URL of the run's store of activations, if it uses one.

    Attributes:
        watch: of the launch's time, from now on.
        out: the run's folder, which `claim` makes.
        begun: whether there is a run to continue; the same on all processes.
        store: None without a cache.

    Raises:
        ValueError: the machine, the folder or the store does not fit.
    """

    def __init__(self, config: Trained, resume: bool, cache: str | None = None) -> None:
        self.watch = Stopwatch(START_UP)
        check_trackers(config.training.trackers)
        self.accelerator = make_accelerator(config, cached=bool(cache))
        self.out = Path(config.out)
        self.begun = is_resuming(self.out, resume)
        self.store = open_cache(cache) if cache else None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        if self.store is not None:
            self.store.close()

    def claim(self, model: nn.Module, keeps_best: bool) -> None:
        """Lock the folder for this run, and check that a model's checkpoints fit on its disk.

        Args:
            keeps_best: whether there will be a best.pt.

        Raises:
            ValueError: another run is writing there, or nothing can be, or they do not fit.
        """
        if self.accelerator.is_main_process:
            claim_folder(self.out, self.begun)
            check_checkpoint_space(self.out, model, keeps_best)

    @contextmanager
    def report(self) -> Iterator[Notes]:
        """Record this launch in the run's folder, and write a report, however it ends.

        All processes must enter. A failed write causes a warning and does not end the run.
        """
        notes = Notes()
        devices = device_names(self.accelerator)
        if not self.accelerator.is_main_process:
            yield notes
            return
        before = read_launches(self.out) if self.begun else []
        launch = new_launch(self.accelerator.num_processes, devices)
        write_launches(self.out, [*before, launch])
        outcome = FINISHED
        try:
            yield notes
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            outcome = (
                INTERRUPTED if interrupted else format_error(error).replace("error", "failed", 1)
            )
            raise
        finally:
            counts = {when: [c.hits, c.partial, c.full] for when, c in notes.activations.items()}
            launch = replace(
                launch,
                outcome=outcome,
                seconds=self.watch.seconds(),
                about=notes.about,
                activations={when: numbers for when, numbers in counts.items() if any(numbers)},
            )
            try:
                write_launches(self.out, [*before, launch])
                write_training_report(self.out)
                print(f"{outcome}; report: {self.out / REPORT}")
            except (OSError, ValueError) as error:
                print(f"warning: {self.out} has no report of this launch: {error}")


def make_accelerator(config: Trained, cached: bool = False, cpu: bool = False) -> Accelerator:
    """Return the accelerator of a training run; set its precision and seed all random numbers.

    Args:
        cached: whether the run begins with passes that are stored.
        cpu: whether to leave a GPU alone.

    Raises:
        ValueError: the machine or accelerate's own settings do not fit the config.
    """
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.training.mixed_precision,
        # Buffers of batch norms are averaged after each epoch; none need be sent before each step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=WAIT_IN_STEP),
        ],
    )
    settle_device(accelerator.device, config)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accumulate with training.accumulate, not with accelerate's own setting")
    check_fp16_has_gpu(config, accelerator)
    if cached and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "--cache: weights that are sharded over processes (FSDP) have no fingerprint; omit it, "
            "and run extract/run.py on the checkpoint afterwards"
        )
    warn_of_little_shm(accelerator)
    connect()
    set_seed(config.training.seed)
    return accelerator


def inference_accelerator(config: Trained, cpu: bool = False) -> Accelerator:
    """Return the accelerator of a program that trains nothing, and set its precision.

    Args:
        cpu: whether to leave a GPU alone.
    """
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.training.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_IN_STEP)],
    )
    settle_device(accelerator.device, config)
    warn_of_little_shm(accelerator)
    connect()
    return accelerator


def settle_device(device: torch.device, config: Trained) -> None:
    """Set the precision of a config, and prepare the device.

    A GPU begins to be used, which loaders ask for; on a CPU, tensors' memory is kept for the next.
    Call this when the accelerator is there: it may change how float32 is multiplied.
    """
    set_precision(config.training.precision)
    if device.type == "cuda":
        torch.cuda.init()
    elif device.type == "cpu":
        keep_freed_memory()


def warn_of_little_shm(accelerator: Accelerator) -> None:
    """Print a line where NCCL may lack the memory that the GPUs of a machine share."""
    several = processes_here(accelerator.num_processes) > 1
    if several and accelerator.device.type == "cuda" and accelerator.is_local_main_process:
        line = describe_little_shm()
        if line:
            print(line)


def check_fp16_has_gpu(config: Trained, accelerator: Accelerator) -> None:
    """Raise ValueError for fp16 on a CPU, where it would silently be something else."""
    if config.training.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.precision fp16 needs a GPU; on this machine use bf16 or fp32")


def is_resuming(out: Path, resume: bool) -> bool:
    """Return whether the folder holds a run to continue; the same on all processes.

    Raises:
        ValueError: it holds one, but `resume` is not wanted; or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; choose a folder")
    # Decided by one process for all: machines may not see the same files in a shared folder.
    begun = broadcast_object((out / "last.pt").exists())
    if begun and not resume:
        raise ValueError(f"{out} holds a run already; add --resume, or choose another --out")
    return bool(begun)


def device_names(accelerator: Accelerator) -> list[str]:
    """Return the device of every process; all processes must call this."""
    device = accelerator.device
    cores = f"{device.type.upper()}, {os.cpu_count()} cores"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    names: list[str] = gather_objects([name])
    return names
