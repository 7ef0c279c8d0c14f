"""Runs of a grid as subprocesses or jobs: several at a time, in any number of processes."""

import asyncio
import os
import re
import shlex
import signal
import sys
import time
from asyncio import FIRST_EXCEPTION
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from configs.messages import plain_line
from configs.progress import ProgressBar
from configs.system import try_lock, unlock
from extract.parallel.jobs import Engine, Requeued, describe_end, obey_interrupts
from train.ablation.grid import Grid, Run
from train.ablation.records import (
    RESULTS,
    prepare,
    read_record,
    remaining_work,
    scoring_digest,
    training_digest,
    write_record,
)

POLL_S = 0.2
JOB_POLL_S = 1.0  # each time a file is looked for, on a disk of many machines
ATTEMPTS = 3  # jobs of a run that may end before it does
PATIENCE_S = 15.0  # for children to end after an interrupt
LOG = "log.txt"
TAIL_BYTES = 2**16
LAUNCHER = re.compile(  # by these a run would take itself for one of many processes
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|ACCELERATE_USE_FSDP"
    r"|(TORCHELASTIC|FSDP|OMPI|PMI|MV2)_.*"
)
TAKEN_AWAY = "ended from outside"
# Exit codes where an engine wants its machine back.
TAKING_AWAY = {-signal.SIGTERM, -getattr(signal, "SIGUSR2", signal.SIGTERM)}


@dataclass(frozen=True)
class RunJob(Requeued):
    """One run as a job, which locks the run where it works: nobody else begins it meanwhile."""

    grid: Grid
    run: Run
    session: str
    device: str
    local: bool

    def __call__(self) -> None:
        if self.local:
            obey_interrupts()
        if self.device:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        Scheduler(self.grid, [self.run], 1, self.session, quiet=True).carry_out()


class Scheduler:
    """Does runs, each as soon as its inputs are done, a slot is free and nobody else is at it.

    Other processes may do the same on the same grid at the same time: a run is done by who locks it
    first, and all wait for all runs. The lock passes to the run's own processes: should this one be
    killed, those that it leaves behind are waited for.

    Args:
        runs: all that need something, those that others build on first.
        processes: how many slots there are.
        session: a text that only processes of the same launch share; what failed in one of them is
            not tried again by another.
        quiet: shows no progress.
        engine: makes a job of each run; None: a subprocess.
    """

    def __init__(
        self,
        grid: Grid,
        runs: Sequence[Run],
        processes: int,
        session: str,
        quiet: bool,
        engine: Engine | None = None,
    ) -> None:
        self.grid, self.runs, self.session, self.engine = grid, runs, session, engine
        total = len(grid.runs())
        self.bar: ProgressBar = ProgressBar(
            total=total,
            initial=total - len(runs),  # they say nothing about the time that the others take
            desc="runs",
            unit="run",
            smoothing=0,  # several end at a time: only the average says when all will have
            disable=quiet,
        )
        self.running: dict[Run, int] = {}  # and the slot of each
        self.waiting: set[Run] = set()  # for a slot
        self.reported: set[Run] = set()
        self.ended: dict[Run, list[Any]] = defaultdict(list)  # jobs
        self.devices = _devices()
        first = int(os.environ.get("LOCAL_RANK", 0)) * processes
        self.slots = range(first, first + processes)

    def carry_out(self) -> dict[Run, str]:
        """Do the runs; return, for those that are not done, why."""
        with self.bar:
            return asyncio.run(self.finish_all())

    async def finish_all(self) -> dict[Run, str]:
        """Wait until all runs are done; return, for those that are not, why."""
        tasks: dict[Run, asyncio.Task[str]] = {}
        for run in self.runs:
            needed = {each: tasks[each] for each in self.grid.needs(run) if each in tasks}
            tasks[run] = asyncio.create_task(self.finish(run, needed))
        pending = set(tasks.values())
        while pending:
            done, pending = await asyncio.wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()  # raises what it has raised
            running = [f"{run}{_progress(self.grid.folder(run) / LOG)}" for run in self.running]
            self.bar.set_postfix_str(", ".join(running))
        return {run: error for run, task in tasks.items() if (error := task.result())}

    async def finish(self, run: Run, inputs: Mapping[Run, "asyncio.Task[str]"]) -> str:
        """Wait until a run is done, whoever does it; return why it is not, nothing if it is."""
        for each, task in inputs.items():
            if await asyncio.shield(task):  # else who waits for it would cancel it, too
                error = f"skipped: it needs {each}, which is not done"
                break
        else:
            digest = training_digest(self.grid, run)
            while (outcome := await self.try_to_do(run, digest)) is None:
                await asyncio.sleep(POLL_S)
            error = outcome
        if error:
            self.print_above(f"{run}: {error}")
        self.bar.update()
        return error

    async def try_to_do(self, run: Run, digest: str) -> str | None:
        """Do what remains of a run if it can begin now.

        Returns:
            nothing if it is done, why it has failed, None if it is to be looked at again.
        """
        self.waiting.add(run)
        free = sorted(set(self.slots) - set(self.running.values()))
        if not free or run != next(each for each in self.runs if each in self.waiting):
            return None
        self.waiting.remove(run)  # one that another process is at holds up none
        with _locked(self.grid, run) as lock:
            if lock is None:
                if not self.running and run not in self.reported:
                    self.reported.add(run)  # once, that there is nothing else to do
                    self.print_above(f"waiting for {run}: another process is working on it")
                return None
            if not remaining_work(self.grid, run, digest):
                return ""
            record = read_record(self.grid.folder(run))
            if record and record.error and record.session == self.session:
                return record.error  # in another process of this launch
            self.running[run] = free[0]
            # Empty lets CUDA choose.
            device = self.devices[free[0] % len(self.devices)] if self.devices else ""
            try:
                if self.engine is None:
                    return await _do(self.grid, run, digest, self.session, lock, device)
                return await self.do_as_job(self.engine, run, lock, device)
            finally:
                del self.running[run]

    async def do_as_job(self, engine: Engine, run: Run, lock: IO[bytes], device: str) -> str | None:
        """Submit a run, or find the job that an earlier launch has submitted, and await its end.

        Returns:
            why the run is given up; None if what its job has left is to be looked at.
        """
        if len(self.ended[run]) == ATTEMPTS:
            last = describe_end(self.ended[run][-1])
            return f"{ATTEMPTS} jobs ended before it was done; the last: {last}"
        job = engine.find(lock)
        if job is not None:
            self.print_above(f"{run}: job {job.job_id} of an earlier launch is working on it")
        else:
            here = device if engine.local else ""
            job = RunJob(self.grid, run, self.session, here, engine.local)
            try:
                job = engine.submit(run.row, job, lock)
            except RuntimeError as error:  # whatever submitting said
                return plain_line(f"it could not be submitted: {error}")
        unlock(lock.fileno())  # for the job
        try:
            while not job.done():
                await asyncio.sleep(JOB_POLL_S)
        except asyncio.CancelledError:
            engine.interrupt(job)
            raise
        self.ended[run].append(job)
        return None

    def print_above(self, line: str) -> None:
        """Print a line above the progress."""
        if not self.bar.disable:
            tqdm.write(line, file=sys.stderr)


async def _do(grid: Grid, run: Run, digest: str, session: str, lock: IO[bytes], device: str) -> str:
    """Train a run, then score it; return why that failed, nothing if it did not."""
    folder, record = grid.folder(run), prepare(grid, run, digest)
    commands = [(subset, grid.scoring(run, subset)) for subset in grid.subsets]
    if not record.trained:
        commands.insert(0, ("", grid.training(run)))
    for subset, command in commands:
        results = [folder / subset / name for name in (RESULTS if subset else ["last.pt"])]
        began = time.monotonic()
        try:
            error = await _call(command, folder, results, device, lock)
            trained = record.trained or not error
            by = session if error and error != TAKEN_AWAY else ""
            record = replace(record, trained=trained, error=error, session=by)
        finally:  # when it is interrupted, too: it goes on from there another time
            if not subset:
                seconds = record.seconds + time.monotonic() - began
                record = replace(record, seconds=round(seconds, 1))
            write_record(folder, record)
        if error:
            return error
    write_record(folder, replace(record, scored=scoring_digest(grid, run)))
    return ""


async def _call(
    command: Sequence[str], folder: Path, results: Sequence[Path], device: str, lock: IO[bytes]
) -> str:
    """Run a command whose output goes to the run's log; return why it failed, if it did.

    Args:
        results: files that it must leave.
        lock: stays locked as long as it runs, whatever becomes of this process.
    """
    with (folder / LOG).open("ab") as log:
        log.write(f"$ python {shlex.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(device),
            start_new_session=True,  # Ctrl-C is for us
            pass_fds=[lock.fileno()],
        )
    try:
        await process.wait()
    finally:
        await _end(process)
    code = process.returncode
    if code in TAKING_AWAY:
        return TAKEN_AWAY
    if code:
        return _last_error(folder / LOG, begin, code)
    missing = [str(file) for file in results if not file.is_file()]
    return f"ended without leaving {missing[0]}" if missing else ""


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask a process that is interrupted, and its children, to end; kill them if they do not."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError, TimeoutError):
            if process.returncode is None:
                os.killpg(process.pid, number)
                await asyncio.wait_for(process.wait(), PATIENCE_S)


def _progress(log: Path) -> str:
    """Return how far a run's command is, as its log says: ` (training 24%)`; empty if it does not.

    Progress comes into a log as `configs.progress` writes it.
    """
    *_, command = re.split(r"(?m)^\$ python ", _tail(log) if log.is_file() else "")
    found = re.findall(r"(?m)^(\w[\w ]*): +(\d+)% \S+/\S+ \[", command)
    return " ({} {}%)".format(*found[-1]) if found else ""


def _last_error(log: Path, begin: int, code: int) -> str:
    """Return the last error in a log after `begin`, or how the command ended."""
    lines = [line.strip() for line in _tail(log, begin).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (errors or lines or [f"{how}, without a message"])[-1]


def _tail(log: Path, begin: int = 0) -> str:
    """Return the end of a log, at most from `begin` on."""
    with log.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace").replace("\r", "\n")


@contextmanager
def _locked(grid: Grid, run: Run) -> Iterator[IO[bytes] | None]:
    """Hold a run's lock, a file that all machines see; None if somebody else does."""
    folder = grid.folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside what may be cleaned away.
    with (folder.parent / f".{folder.name}.lock").open("a+b") as file:
        if try_lock(file.fileno()) is False:
            yield None
            return
        try:
            yield file
        finally:
            # Not by closing alone: what a child left behind may still hold it open.
            unlock(file.fileno())


def _environment(device: str) -> dict[str, str]:
    """Return the environment of a run: one process, and one thread unless it is set otherwise."""
    ours = {name: value for name, value in os.environ.items() if not LAUNCHER.fullmatch(name)}
    threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    return (
        {"OMP_NUM_THREADS": threads} | ours | ({"CUDA_VISIBLE_DEVICES": device} if device else {})
    )


def _devices() -> list[str]:
    """Return the GPUs that runs are spread over; none leaves the choice to CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    there = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(there, key=int)
