"""Work that many machines share without talking to each other: whole videos, by their names."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.messages import truncated
from extract.parallel.jobs import (
    Requeued,
    describe_end,
    interrupt_local,
    interrupts_ignored,
    obey_interrupts,
    open_executor,
)


@dataclass(frozen=True)
class Share:
    """Share `number` of `count`, from 1 on."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Return the share that a text such as `3/20` names.

        Raises:
            ValueError: it names none.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise ValueError(f"--share: '{text}' is not like 3/20, the third of twenty")
        if not 1 <= int(number) <= int(count):
            raise ValueError(f"--share: {text}: shares are counted from 1 to {count}")
        return cls(int(number), int(count))

    def of(self, names: Iterable[str]) -> list[str]:
        """Return the names of this share, in their order.

        Shares differ by one name at most, and which names a share has does not depend on what is
        done already: it may be given up and begun again, on any machine.
        """
        names = list(names)
        shuffled = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        mine = set(shuffled[self.number - 1 :: self.count])
        return [name for name in names if name in mine]


class ShareCommand(Requeued):
    """A command that a job runs; one that is preempted is put in the queue again as it is.

    Args:
        words: of the command, the interpreter first.
        local: it runs on the machine that submits it, and ends with the process that does.
    """

    def __init__(self, words: Sequence[str], local: bool) -> None:
        self.words, self.local = list(words), local

    def __call__(self) -> None:
        if self.local:
            obey_interrupts()
        subprocess.run(self.words, check=True)


def without_options(words: Sequence[str], options: Mapping[str, int | None]) -> list[str]:
    """Return the words of a command line, some options left out.

    Args:
        options: how many values each of them has; None: all up to the next option.
    """
    kept: list[str] = []
    left = 0.0
    for word in words:
        name, equals, _ = word.partition("=")
        if name in options:
            values = options[name]
            left = 0 if equals else math.inf if values is None else values
        elif left and not word.startswith("--"):
            left -= 1
        else:
            left = 0
            kept.append(word)
    return kept


def submit_shares(
    engine: str, count: int, resources: Mapping[str, Any], logs: Path, words: Sequence[str]
) -> None:
    """Run a command once for each share, as an array of jobs, and wait for them.

    An interrupt ends jobs of this machine; those of a cluster run on.

    Args:
        engine, resources, logs: as of `open_executor`.
        words: of the command after the interpreter; `--share I/N` is added.

    Raises:
        ValueError: as of `open_executor`.
        ChildProcessError: shares have failed; all others are done.
    """
    executor, local = open_executor(engine, resources, logs), engine == "local"
    commands = [
        ShareCommand([sys.executable, *words, "--share", f"{number}/{count}"], local)
        for number in range(1, count + 1)
    ]
    with interrupts_ignored() if local else nullcontext():
        jobs = executor.submit_array(commands)
    names = f"jobs {jobs[0].job_id} … {jobs[-1].job_id}"
    print(f"{count} shares as {names}; their output: {logs}", flush=True)
    try:
        failed = [
            f"share {number}/{count}: {describe_end(job)}"
            for number, job in enumerate(jobs, 1)
            if job.exception() is not None
        ]
    except KeyboardInterrupt:
        if local:
            for job in jobs:
                if not job.done():  # else its process number may be another's by now
                    interrupt_local(job)
        else:
            print(f"{names} run on")
        raise
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {count} shares failed; what the others made is kept, and the same "
            "command makes the rest:\n  " + "\n  ".join(truncated(failed))
        )
