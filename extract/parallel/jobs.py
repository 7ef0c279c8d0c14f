"""Jobs of a cluster, or of this machine, through submitit, which is needed for nothing else."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from configs.loader import CONFIGS

WORDS = {"true": True, "false": False, "null": None}
ENGINES = ("slurm", "local")
OWN_LIMITS = {"slurm": ("slurm_timeout_min", "slurm_time"), "local": ("local_timeout_min",)}


class Requeued(ABC):
    """A job that is put in the queue again as it is when its machine is taken away."""

    @abstractmethod
    def __call__(self) -> None:
        """Do what the job is for."""

    def checkpoint(self) -> Any:
        """Return what submitit queues then."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def parse_resources(pairs: Sequence[str]) -> dict[str, Any]:
    """Return resources of a job from texts `name=value`.

    A value is a number, true, false or null where it is written so, else a text: 12:30:00 is one.

    Raises:
        ValueError: one is not of this form.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"--resources: '{pair}' is not like timeout_min=240")
        found[name] = WORDS[value] if value in WORDS else _read_number(value)
    return found


def _read_number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def open_executor(
    engine: str, resources: Mapping[str, Any], logs: Path, where: str = "--resources"
) -> Any:
    """Return submitit's executor, which submits jobs.

    Args:
        engine: `slurm`, or `local` for processes of this machine.
        resources: parameters of the executor, as `timeout_min`, `gpus_per_node`, `slurm_partition`,
            `slurm_array_parallelism`.
        logs: folder for the jobs' output; the same on all machines.
        where: what errors name as the place of the resources.

    Raises:
        ValueError: submitit is not installed, finds no such engine, or does not know a resource; or
            how long a job may take is not said.
    """
    limits = [resources.get(name) for name in ("timeout_min", *OWN_LIMITS[engine])]
    if not any(limits) or any(isinstance(limit, int) and limit < 1 for limit in limits):
        # submitit's own limits are 2 and 5 minutes.
        raise ValueError(f"{where}: say how many minutes a job may take, as in timeout_min=240")
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            'jobs of a cluster need submitit: pip install "palindrome[cluster]" (in a checkout '
            '".[cluster]")'
        ) from error
    if not __name__.startswith("palindrome."):  # a checkout, where jobs must find this file, too
        places = [str(CONFIGS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, places)))
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=engine)
    except RuntimeError as error:
        raise ValueError(f"--on {engine}: {error}") from error
    try:
        executor.update_parameters(**{"name": "palindrome"} | dict(resources))
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    return executor


class Engine:
    """Jobs whose names stand in files, where processes that come later find them.

    Args:
        name: of submitit's engine.
        executors: of each kind of job (see `open_executor`).
        logs: folder for the jobs' output, the executors' own.
    """

    def __init__(self, name: str, executors: Mapping[str, Any], logs: Path) -> None:
        self.name, self.executors, self.logs = name, executors, logs

    @property
    def local(self) -> bool:
        """Whether jobs are processes of this machine, which end with the one that submits them."""
        return self.name == "local"

    def find(self, file: IO[bytes]) -> Any | None:
        """Return the job that a file names, unless it has ended; of a local one nobody knows."""
        import submitit

        file.seek(0)
        engine, _, job_id = file.read().decode().partition(" ")
        if engine != self.name:
            return None
        job: Any = (submitit.LocalJob if self.local else submitit.SlurmJob)(self.logs, job_id)
        return None if job.done() else job

    def submit(self, kind: str, job: Requeued, file: IO[bytes]) -> Any:
        """Return a new job, whose name now stands in the file.

        Raises:
            RuntimeError: the engine refuses it.
        """
        with interrupts_ignored() if self.local else nullcontext():
            submitted = self.executors[kind].submit(job)
        file.truncate(0)
        file.write(f"{self.name} {submitted.job_id}".encode())
        file.flush()
        return submitted

    def interrupt(self, job: Any) -> None:
        """Ask a job of this machine to end; those of a cluster go on."""
        if self.local:
            interrupt_local(job)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Let processes that begin meanwhile ignore Ctrl-C.

    An interrupt is for the job alone; submitit's process around it would print a traceback.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def interrupt_local(job: Any) -> None:
    """Ask a job of this machine to end, one that has called `obey_interrupts`."""
    with suppress(ProcessLookupError):
        os.kill(int(job.job_id), signal.SIGTERM)


def obey_interrupts() -> None:
    """Let an interrupt end this job of this machine, as it ends the process that submitted it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def describe_end(job: Any) -> str:
    """Return the last line of a job's errors, and where they are."""
    lines = [line for line in (job.stderr() or "").splitlines() if line.startswith("error: ")]
    return f"{lines[-1] if lines else 'it ended'} ({job.paths.stderr})"
