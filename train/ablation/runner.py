"""Runs of a grid as subprocesses: several at a time, in any number of processes and machines."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

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
LAUNCHER = {  # by these a run would take itself for one of many processes
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"),
    "ACCELERATE_USE_FSDP",
}
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "FSDP_", "OMPI_", "PMI_", "MV2_")


def carry_out(
    grid: Grid, runs: Sequence[Run], processes: int, session: str, quiet: bool
) -> dict[Run, str]:
    """Do all runs, as many as `processes` at a time; return why those that are not done are not.

    Other processes may do the same on the same grid at the same time: a run is done by who locks it
    first, and all wait for all runs. The lock passes to the run's own processes: should this one be
    killed, those that it leaves behind are waited for.

    Args:
        runs: those that others build on first.
        session: a text that only processes of the same launch share; what failed in one of them is
            not tried again by another.
        quiet: shows no progress.
    """
    scheduler = _Scheduler(grid, runs, processes, session, quiet)
    try:
        while scheduler.pending or scheduler.jobs:
            scheduler.step()
            time.sleep(POLL_S)
    finally:
        scheduler.stop()
    return scheduler.failed


class _Scheduler:
    """The runs that are left, those that are being done here, and what became of the others."""

    def __init__(
        self, grid: Grid, runs: Sequence[Run], processes: int, session: str, quiet: bool
    ) -> None:
        self.grid, self.session = grid, session
        self.pending = list(runs)
        self.jobs: dict[int, _RunProcess] = {}
        self.free = list(range(processes))
        self.done: set[Run] = set()
        self.failed: dict[Run, str] = {}
        self.digests: dict[Run, str] = {}
        self.reported: set[Run] = set()
        self.devices = _devices()
        self.first_slot = int(os.environ.get("LOCAL_RANK", 0)) * processes
        self.quiet = quiet
        self.collect_finished()
        self.bar: tqdm[Any] = tqdm(
            total=len(runs),
            initial=len(self.done),  # says nothing about the time that is left
            desc="runs",
            unit="run",
            smoothing=0,  # several end at a time: only the average says when all will have
            disable=quiet,
        )

    def step(self) -> None:
        """Advance the running ones, record what others have done, start what can be."""
        running = [job.run for job in self.jobs.values()]
        for slot, job in list(self.jobs.items()):
            if not job.advance():
                continue
            del self.jobs[slot]
            self.free.append(slot)
            self.record_result(job.run, job.error)
        self.collect_finished()
        news = len(self.done) + len(self.failed) - self.bar.n
        if news:
            self.bar.update(news)
        elif sys.stderr.isatty():
            self.bar.refresh()  # the clock goes on, though nothing may be news for hours
        ready = [run for run in self.pending if run in self.digests]
        for run in ready:
            if self.free:
                self.start(run)
        if ready and not self.jobs and ready[0] not in self.reported:
            self.reported.add(ready[0])
            self.print_above(f"waiting for {ready[0]}: another process is at it")
        now = [job.run for job in self.jobs.values()]
        if now != running:
            self.bar.set_postfix_str(", ".join(map(str, now)))

    def record_result(self, run: Run, error: str) -> None:
        """Record that a run is done, or why it is not."""
        if error:
            self.failed[run] = error
            self.print_above(f"{run}: {error}")
        else:
            self.done.add(run)

    def print_above(self, line: str) -> None:
        """Print a line above the progress."""
        if not self.quiet:
            tqdm.write(line, file=sys.stderr)

    def collect_finished(self) -> None:
        """Move runs that need nothing, or cannot be done, out of the pending ones."""
        for run in self.pending:
            inputs = [each for group in self.grid.inputs(run).values() for each in group]
            lacking = [each for each in inputs if each in self.failed]
            if lacking:
                self.record_result(run, f"skipped: it needs {lacking[0]}, which is not done")
            elif all(each in self.done for each in inputs):
                if run not in self.digests:
                    self.digests[run] = training_digest(self.grid, run)
                if not remaining_work(self.grid, run, self.digests[run]):
                    self.record_result(run, "")
                elif error := self.error_elsewhere(run):
                    self.record_result(run, error)
        self.pending = [
            run for run in self.pending if run not in self.done and run not in self.failed
        ]

    def error_elsewhere(self, run: Run) -> str:
        """Return why a run has failed in another process of this launch; nothing if it has not."""
        record = read_record(self.grid.folder(run))
        return record.error if record and record.session == self.session else ""

    def start(self, run: Run) -> None:
        """Start a run if nobody else is at it and it still needs something."""
        lock = _lock(self.grid, run)
        if lock is None:
            return
        if self.error_elsewhere(run) or not remaining_work(self.grid, run, self.digests[run]):
            _unlock(lock)  # another process has been at it a moment ago
            return
        slot = self.free.pop(0)
        environment = _environment()
        if self.devices:
            number = (self.first_slot + slot) % len(self.devices)
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[number]
        self.jobs[slot] = _RunProcess(
            self.grid, run, self.digests[run], lock, self.session, environment
        )
        self.pending.remove(run)

    def stop(self) -> None:
        """End what still runs; it goes on from there another time."""
        for job in self.jobs.values():
            job.interrupt()
        limit = time.monotonic() + PATIENCE_S
        for job in self.jobs.values():
            job.end(limit)
        self.bar.close()


class _RunProcess:
    """One run: its training, then its scores, each a process of its own."""

    def __init__(
        self,
        grid: Grid,
        run: Run,
        training: str,
        lock: IO[bytes],
        session: str,
        environment: dict[str, str],
    ) -> None:
        self.grid, self.run, self.lock = grid, run, lock
        self.session, self.environment = session, environment
        self.folder = grid.folder(run)
        self.record = prepare(grid, run, training)
        self.error = ""
        self.commands = [(subset, grid.scoring(run, subset)) for subset in grid.subsets]
        if not self.record.trained:
            self.commands.insert(0, ("", grid.training(run)))
        self.start()

    def start(self) -> None:
        """Start the first of the commands that are left."""
        _, command = self.commands[0]
        with (self.folder / LOG).open("ab") as log:
            log.write(f"$ python {shlex.join(command)}\n".encode())
            log.flush()
            self.log_begin = log.tell()
            self.began = time.monotonic()
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for us
                pass_fds=[self.lock.fileno()],
            )

    def advance(self) -> bool:
        """Go on to the next command if one has ended; say whether the run has."""
        code = self.process.poll()
        if code is None:
            return False
        subset, _ = self.commands.pop(0)
        left = [self.folder / subset / name for name in (RESULTS if subset else ["last.pt"])]
        missing = [str(file) for file in left if not file.is_file()]
        if code or missing:
            self.error = self._cause(code) if code else f"ended without leaving {missing[0]}"
            self.record = replace(self.record, error=self.error, session=self.session)
        if not subset:
            self.count_time()
            self.record = replace(self.record, trained=not self.error)
        if not self.error and self.commands:
            write_record(self.folder, self.record)
            self.start()
            return False
        if not self.error:
            self.record = replace(self.record, scored=scoring_digest(self.grid, self.run))
        write_record(self.folder, self.record)
        _unlock(self.lock)
        return True

    def count_time(self) -> None:
        """Add the time since the command began to the run's."""
        seconds = self.record.seconds + time.monotonic() - self.began
        self.record = replace(self.record, seconds=round(seconds, 1))

    def interrupt(self) -> None:
        """Ask the run's processes to end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def end(self, limit: float) -> None:
        """Wait for that until `limit` (monotonic), then kill them."""
        try:
            self.process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if not self.record.trained:
            self.count_time()
            write_record(self.folder, self.record)
        _unlock(self.lock)

    def _cause(self, code: int) -> str:
        """The last error that a command wrote, or how it ended."""
        with (self.folder / LOG).open("rb") as log:
            log.seek(max(self.log_begin, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = log.read().decode(errors="replace").replace("\r", "\n")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return (errors or lines or [f"{how}, without a word"])[-1]


def _lock(grid: Grid, run: Run) -> IO[bytes] | None:
    """Lock a run, or return None if somebody else has."""
    folder = grid.folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = (folder.parent / f".{folder.name}.lock").open("ab")  # beside what may be cleaned away
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _unlock(file: IO[bytes]) -> None:
    # Not by closing alone: what a child left behind may still hold it open.
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _environment() -> dict[str, str]:
    """The environment of a run: one process, and one thread unless somebody said otherwise."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER and not name.startswith(LAUNCHER_PREFIXES)
    }
    return {"OMP_NUM_THREADS": "1"} | ours


def _devices() -> list[str]:
    """The GPUs that runs can be spread over; none, and CUDA is left alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    there = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(there, key=int)
