"""Runs of a grid as subprocesses: several at a time, in any number of processes and machines."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from asyncio import FIRST_EXCEPTION
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from tqdm import tqdm

from configs.progress import ProgressBar
from configs.system import fcntl
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
PATIENCE_S = 15.0  # for children to end after an interrupt
LOG = "log.txt"
TAIL_BYTES = 2**16
PROGRESS_BYTES = 2**12
LAUNCHER = {  # by these a run would take itself for one of many processes
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
    "ACCELERATE_USE_FSDP",
}
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "FSDP_", "OMPI_", "PMI_", "MV2_")


def carry_out(
    grid: Grid, runs: Sequence[Run], processes: int, session: str, quiet: bool
) -> dict[Run, str]:
    """Do runs, as many as `processes` at a time; return why those that are not done are not.

    Other processes may do the same on the same grid at the same time: a run is done by who locks it
    first, and all wait for all runs. The lock passes to the run's own processes: should this one be
    killed, those that it leaves behind are waited for.

    Args:
        runs: all that need something, those that others build on first.
        session: a text that only processes of the same launch share; what failed in one of them is
            not tried again by another.
        quiet: shows no progress.
    """
    total = len(grid.runs())
    bar: ProgressBar = ProgressBar(
        total=total,
        initial=total - len(runs),  # they say nothing about the time that the others take
        desc="runs",
        unit="run",
        smoothing=0,  # several end at a time: only the average says when all will have
        disable=quiet,
    )
    with bar:
        return asyncio.run(_Scheduler(grid, processes, session, bar).carry_out(runs))


class _Scheduler:
    """Does each run as soon as its inputs are done, a slot is free and nobody else is at it.

    Args:
        processes: how many slots there are.
        bar: is moved by every run that ends.
    """

    def __init__(self, grid: Grid, processes: int, session: str, bar: ProgressBar) -> None:
        self.grid, self.session, self.bar = grid, session, bar
        self.running: list[Run] = []
        self.reported: set[Run] = set()
        self.devices = _devices()
        first = int(os.environ.get("LOCAL_RANK", 0)) * processes
        self.slots = list(range(first, first + processes))

    async def carry_out(self, runs: Sequence[Run]) -> dict[Run, str]:
        """Do all runs; return why those that are not done are not."""
        tasks: dict[Run, asyncio.Task[str]] = {}
        for run in runs:
            inputs = [each for group in self.grid.inputs(run).values() for each in group]
            needed = {each: tasks[each] for each in inputs if each in tasks}
            tasks[run] = asyncio.create_task(self.finish(run, needed))
        pending = set(tasks.values())
        while pending:
            done, pending = await asyncio.wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()  # raises what it has raised
            self.print_running()
        return {run: error for run, task in tasks.items() if (error := task.result())}

    async def finish(self, run: Run, inputs: Mapping[Run, "asyncio.Task[str]"]) -> str:
        """Wait until a run is done, by whomever; return why it is not, nothing if it is."""
        error = ""
        for each, task in inputs.items():
            if await asyncio.shield(task):  # else who waits for it would cancel it, too
                error = f"skipped: it needs {each}, which is not done"
                break
        else:
            digest = training_digest(self.grid, run)
            while not error and remaining_work(self.grid, run, digest):
                error = self.error_elsewhere(run) or await self.try_to_do(run, digest)
        if error:
            self.print_above(f"{run}: {error}")
        self.bar.update()
        return error

    def error_elsewhere(self, run: Run) -> str:
        """Return why a run has failed in a process of this launch; nothing if it has not."""
        record = read_record(self.grid.folder(run))
        return record.error if record and record.session == self.session else ""

    async def try_to_do(self, run: Run, digest: str) -> str:
        """Do a run if it can begin now, else wait a moment; return why it failed, if it did."""
        if self.slots:
            with _locked(self.grid, run) as lock:
                if lock is None:
                    self.print_waiting(run)
                # Another process may have been at it a moment ago.
                elif not self.error_elsewhere(run) and remaining_work(self.grid, run, digest):
                    return await self.do(run, digest, lock)
        await asyncio.sleep(POLL_S)
        return ""

    async def do(self, run: Run, digest: str, lock: IO[bytes]) -> str:
        """Train a run, then score it; return why that failed, nothing if it did not."""
        slot = self.slots.pop(0)
        folder, record = self.grid.folder(run), prepare(self.grid, run, digest)
        environment = _environment()
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        commands = [(subset, self.grid.scoring(run, subset)) for subset in self.grid.subsets]
        if not record.trained:
            commands.insert(0, ("", self.grid.training(run)))
        self.running.append(run)
        self.print_running()
        try:
            for subset, command in commands:
                results = [folder / subset / name for name in (RESULTS if subset else ["last.pt"])]
                began = time.monotonic()
                try:
                    error = await _call(command, folder, results, environment, lock)
                    session = self.session if error else ""
                    trained = record.trained or not error
                    record = replace(record, trained=trained, error=error, session=session)
                finally:  # when it is interrupted, too: it goes on from there another time
                    if not subset:
                        seconds = record.seconds + time.monotonic() - began
                        record = replace(record, seconds=round(seconds, 1))
                    write_record(folder, record)
                if error:
                    return error
            write_record(folder, replace(record, scored=scoring_digest(self.grid, run)))
            return ""
        finally:
            self.slots.append(slot)
            self.running.remove(run)
            self.print_running()

    def print_running(self) -> None:
        """Name the runs behind the progress, and how far they are."""
        runs = [f"{run}{_progress(self.grid.folder(run) / LOG)}" for run in self.running]
        self.bar.set_postfix_str(", ".join(runs))

    def print_waiting(self, run: Run) -> None:
        """Say once that a run is waited for, where there is nothing else to do."""
        if not self.running and run not in self.reported:
            self.reported.add(run)
            self.print_above(f"waiting for {run}: another process is at it")

    def print_above(self, line: str) -> None:
        """Print a line above the progress."""
        if not self.bar.disable:
            tqdm.write(line, file=sys.stderr)


async def _call(
    command: Sequence[str],
    folder: Path,
    results: Sequence[Path],
    environment: Mapping[str, str],
    lock: IO[bytes],
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
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us
            pass_fds=[lock.fileno()],
        )
    try:
        while process.poll() is None:
            await asyncio.sleep(POLL_S)
    finally:
        await _end(process)
    if code := process.returncode:
        return _last_error(folder / LOG, begin, code)
    missing = [str(file) for file in results if not file.is_file()]
    return f"ended without leaving {missing[0]}" if missing else ""


async def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process that is interrupted, and its children, to end; kill them if they do not."""
    limit = time.monotonic() + PATIENCE_S
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    while process.poll() is None and time.monotonic() < limit:
        await asyncio.sleep(POLL_S)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _progress(log: Path) -> str:
    """Return how far a run's command is, as its log says: ` (training 24%)`; empty if it does not.

    Progress comes into a log as `configs.progress` writes it.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - PROGRESS_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    *_, command = re.split(r"(?m)^\$ python ", text)
    found = re.findall(r"(?m)^(\w[\w ]*): +(\d+)% \S+/\S+ \[", command)
    return " ({} {}%)".format(*found[-1]) if found else ""


def _last_error(log: Path, begin: int, code: int) -> str:
    """Return the last error in a log behind `begin`, or how the command ended."""
    with log.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (errors or lines or [f"{how}, without a word"])[-1]


@contextmanager
def _locked(grid: Grid, run: Run) -> Iterator[IO[bytes] | None]:
    """Hold a run's lock; None if somebody else does."""
    folder = grid.folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside what may be cleaned away.
    with (folder.parent / f".{folder.name}.lock").open("ab") as file:
        if fcntl is None:
            yield file
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        try:
            yield file
        finally:
            # Not by closing alone: what a child left behind may still hold it open.
            fcntl.flock(file, fcntl.LOCK_UN)


def _environment() -> dict[str, str]:
    """Return the environment of a run: one process, and one thread unless it is set otherwise."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER and not name.startswith(LAUNCHER_PREFIXES)
    }
    return {"OMP_NUM_THREADS": "1"} | ours


def _devices() -> list[str]:
    """Return the GPUs that runs are spread over; none leaves the choice to CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    there = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(there, key=int)
