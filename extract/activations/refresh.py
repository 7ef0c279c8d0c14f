"""Makes the passes of a plan, shared out over processes, decoding ahead of the backbone."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from cache.errors import StoreUnreachable
from configs.messages import truncated
from configs.progress import ProgressBar
from extract.activations.activations import Activations
from extract.activations.inputs import Job, JobInputs, PassInput, Piece
from extract.activations.passes import Pass
from extract.activations.plan import Plan, check_disk_space
from extract.activations.stored import Places
from extract.activations.writing import StageTimes, WritingThread, time_decoding
from extract.parallel.loader import make_loader
from extract.parallel.lookahead import copied_ahead
from extract.parallel.processes import gather_objects, wait_for_all
from extract.settings.units import CLIP_FRAMES
from extract.video.reader import VideoError


class _Travelling(NamedTuple):
    """A piece on its way to the device; its own code is part of every fingerprint."""

    piece: Piece

    def each(self, change: Callable[[Tensor], Tensor]) -> "_Travelling":
        return _Travelling(replace(self.piece, inputs=change(self.piece.inputs)))


def refresh(
    made: Plan, accelerator: Accelerator, workers: int, skip_bad: bool = False
) -> dict[str, str]:
    """Make the passes of a plan, shared out over all processes; what is made is stored at once.

    Args:
        workers: decoding processes of each process.
        skip_bad: leave out videos that cannot be read; otherwise they are an error at the end.

    Returns:
        Why videos were left out, by name.

    Raises:
        ValueError: videos cannot be read; all others are done.
    """
    check_disk_space(made)
    jobs = _jobs(made)
    mine = _share(made, jobs, accelerator.process_index, accelerator.num_processes)
    if accelerator.is_main_process:
        with suppress(StoreUnreachable):
            _copy_names(made)
    times = StageTimes()
    try:
        unread = _work(made, mine, accelerator, workers, times)
    except BaseException:
        # What is done is done.
        for request in made.wanted:
            with suppress(OSError):
                request.activations.flush()
        raise
    with times.of("write"):
        for request in made.wanted:
            request.activations.close()
    if mine and accelerator.is_main_process:
        print(times.describe())
    for others in gather_objects([unread]):
        unread |= others
    wait_for_all()
    for request in made.wanted:
        with suppress(StoreUnreachable):
            request.activations.store.refresh()
    if unread and not skip_bad:  # the others are done
        raise VideoError("\n  ".join(truncated(list(dict.fromkeys(unread.values())))))
    return made.gone | unread


def describe_unkept(every: Sequence[Activations], accelerator: Accelerator) -> str | None:
    """Return what the stores could not take from any process, in one line; None if nothing."""
    shares = gather_objects([(sum(len(a.unkept) for a in every), [a.unkept_cause for a in every])])
    causes = [cause for _, some in shares for cause in some if cause]
    count = sum(number for number, _ in shares)
    return f"{count:,} activations could not be stored: {causes[-1]}" if count else None


def _copy_names(made: Plan) -> None:
    """Let the store know weights and videos by their names of today, also where nothing is made."""
    for request in made.wanted:
        places = request.activations.cached_cuts()
        for cut in request.cuts:
            if places[cut].fingerprint in request.activations.store.fingerprints:
                request.activations.describe_fingerprint(places[cut])
        for span in request.spans:
            request.activations.describe(span.video)


def _jobs(made: Plan) -> list[list[int]]:
    """Return the numbers of the passes of each video."""
    numbers = range(len(made.todo))
    video = [made.span(todo).video.digest for todo in made.todo]
    ordered = sorted(numbers, key=lambda n: (video[n], n))
    return [list(same) for _, same in groupby(ordered, key=lambda n: video[n])]


def _share(made: Plan, jobs: list[list[int]], rank: int, processes: int) -> list[list[int]]:
    """Return one process's jobs: the longest first, each to whoever has least to do."""

    def cost(job: list[int]) -> int:
        return sum(made.span(made.todo[n]).window.samples for n in job)

    loads, mine = [0] * processes, []
    for job in sorted(jobs, key=cost, reverse=True):
        least = loads.index(min(loads))
        loads[least] += cost(job)
        if least == rank:
            mine.append(job)
    return mine


def _work(
    made: Plan,
    jobs: list[list[int]],
    accelerator: Accelerator,
    workers: int,
    times: StageTimes,
) -> dict[str, str]:
    skipped: dict[str, str] = {}
    passes: dict[int, Pass] = {}
    places = [request.activations.cached_cuts() for request in made.wanted]
    names: dict[str, set[str]] = {}
    for span in (span for request in made.wanted for span in request.spans):
        names.setdefault(span.video.digest, set()).add(span.video.name)
    clips = sum(made.span(made.todo[n]).window.samples for job in jobs for n in job) // CLIP_FRAMES
    bar = ProgressBar(
        total=clips, desc="passes", unit="clip", disable=not jobs or not accelerator.is_main_process
    )
    pieces = _loader(made, jobs, places, workers, accelerator.device) if jobs else ()
    with bar, WritingThread(times) as writing:
        decoded = map(_Travelling, time_decoding(pieces, times))
        for (piece,) in copied_ahead(decoded, accelerator.device):
            if piece.problem:
                for number in piece.numbers:
                    passes.pop(number, None)
                    digest = made.span(made.todo[number]).video.digest
                    skipped |= dict.fromkeys(names[digest], piece.problem)
                continue
            for number in piece.numbers:
                if number not in passes or passes[number].must_restart(piece):
                    todo = made.todo[number]
                    activations = made.wanted[todo.wanted].activations
                    span, at = made.span(todo), places[todo.wanted]
                    # Pixels may have come in place of a stored activation that is damaged.
                    start = None if piece.window else todo.start
                    passes[number] = activations.start_pass(
                        at, span, start, todo.cuts, write=partial(writing.write, activations)
                    )
                with times.computing():
                    passes[number].push(piece)
                bar.update(piece.clips(passes[number].span))
                if piece.last:
                    del passes[number]
    return skipped


def _loader(
    made: Plan, jobs: list[list[int]], places: list[Places], workers: int, device: torch.device
) -> "DataLoader[Piece]":
    def task(number: int) -> PassInput:
        todo = made.todo[number]
        source = None if todo.start is None else places[todo.wanted][todo.start]
        return PassInput(number, made.span(todo), source)

    tasks: list[Job] = [[task(number) for number in job] for job in jobs]
    inputs = JobInputs(tasks, made.wanted[0].activations.pixels, device)
    return make_loader(inputs, batch_size=None, workers=min(workers, len(jobs)))
