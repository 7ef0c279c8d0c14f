"""Ways to train on a dataset: what each takes here, in bytes and hours, and what it gives up."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator

from configs.messages import format_bytes, format_count, markdown_table
from evaluate.reports.sections import format_duration
from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, estimate_s, needed_bytes, plan
from extract.parallel.processes import broadcast_object
from train.cost.measure import ReadingCost, StepCost, measure_reading, measure_step
from train.cost.workload import Workload, cached_block, count_workload, freeze_below
from train.data.cached import evaluation_spans, training_spans
from train.data.items import VideoItem
from train.detector.model import Detector

LEARNERS = {"adapter": "adapters", "side": "adapters beside", "full": "transformer blocks"}
NOTICED = 0.02  # of a run; smaller differences are noise


@dataclass(frozen=True)
class TrainingRoute:
    """One way to train.

    Args:
        gives_up: in words.
        step: what a window takes of the device.
        place: where what it writes would lie, with `free_bytes` (None: nobody can say); None where
            it writes nothing.
        bytes: that it keeps there beside the videos, before compression; `needed_bytes`: that must
            be free meanwhile.
        preparation_hours: that only the first run takes; `further_run_hours`: that every run takes.
    """

    name: str
    gives_up: str
    step: StepCost
    further_run_hours: float
    preparation_hours: float = 0.0
    bytes: int = 0
    needed_bytes: int = 0
    place: str | None = None
    free_bytes: int | None = None

    @property
    def first_run_hours(self) -> float:
        """Hours of the first run, its preparation included."""
        return self.preparation_hours + self.further_run_hours

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where nobody can say."""
        if self.place and self.free_bytes is None:
            return None
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes

    def cells(self) -> dict[str, str]:
        """Return its row of the table, by column."""
        free = "unknown" if self.fits is None else ""
        if self.free_bytes is not None:
            free = format_bytes(self.free_bytes) + ("" if self.fits else ": TOO SMALL")
        return {
            "route": self.name,
            "extra bytes": format_bytes(self.bytes),
            "free there": free,
            "preparation": format_duration(3600 * self.preparation_hours),
            "first run": format_duration(3600 * self.first_run_hours),
            "further run": format_duration(3600 * self.further_run_hours),
            "gives up": self.gives_up,
        }


@dataclass(frozen=True)
class Routes:
    """The ways to train, and what they come from.

    Args:
        routes: raw videos, decoded frames, and what cached activations there can be.
        closed: why the experiment cannot go the others.
        trials_s: how many seconds measuring took.
    """

    routes: Sequence[TrainingRoute]
    closed: Sequence[str]
    work: Workload
    reading: ReadingCost
    trials_s: float

    def text(self) -> str:
        """Return what a run is here, a table of the ways to train, and the advice."""
        work, validation = self.work, "no validation"
        if work.validations:
            validation = f"{work.validations} validations of {work.validation_windows:,} windows"
        headline = (
            f"a run: {work.epochs} epochs, {work.windows:,} windows, {validation}; "
            f"{format_count(work.processes, 'process', 'processes')} with "
            f"{format_count(work.workers, 'worker')} each, {format_count(work.cores, 'core')}"
        )
        rows = [route.cells() for route in self.routes]
        table = markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])
        return "\n".join([headline, table, *self.advice()])

    def advice(self) -> list[str]:
        """Return what the numbers say, in a few lines."""
        work, reading, (raw, frames, *cached) = self.work, self.reading, self.routes
        decode_s = work.samples * (reading.decoded_s + reading.cropped_s) / max(work.workers, 1)
        network_s = raw.step.trained_s
        turns = f"({work.workers} at once)" if work.workers else "(in turns, without workers)"
        lines = [
            f"free there: on the disk of {frames.place} for frames"
            + (f", on that of {cached[0].place} for activations" if cached else ""),
            f"raw: of a window, decoding takes {decode_s:.2f} s {turns}, the network "
            f"{network_s:.2f} s"
            + (", so proxies would help: see extract/transcode.py" if decode_s > network_s else ""),
            *(f"not open: {why}" for why in self.closed),
        ]
        if no_room := [route.name for route in self.routes if route.fits is False]:
            lines.append(f"no room on the disk: {', '.join(no_room)}")
        usable = [route for route in (raw, frames) if route.fits is not False]
        first = _choose(usable, [route.first_run_hours for route in usable])
        further = _choose(usable, [route.further_run_hours for route in usable])
        line = f"recommended end to end: {first.name}"
        if further != first:
            line += f" for one run, {further.name} for many"
        for route in cached:
            if route.fits is not False:
                share = route.further_run_hours / raw.further_run_hours
                line += f"; {route.name}: a further run takes {share:.1%} of one from raw videos"
        origin = (
            f"estimated from {self.trials_s:.0f} s of trials on {len(reading.videos)} "
            "videos, with the machine as busy as it is now; starting up, slow disks and "
            "suppression are not in it; it may be off by half"
        )
        return [*lines, line, origin]

    def to_dict(self) -> dict[str, Any]:
        """Return the table, in bytes and hours, with all that it comes from."""
        return {
            "routes": [
                asdict(route) | {"first_run_hours": route.first_run_hours, "fits": route.fits}
                for route in self.routes
            ],
            "advice": self.advice(),
            "work": asdict(self.work),
            "trials": {"seconds": self.trials_s, "reading": asdict(self.reading)},
        }


def reason_not_to_compare(
    detector: Detector, training: Sequence[VideoItem], validation: Sequence[VideoItem]
) -> str | None:
    """Return why there is nothing to choose; None if there is."""
    gone = sum(not item.path.exists() for item in (*training, *validation))
    if gone:
        return f"{gone} videos are gone, so that only what is stored can be trained on"
    if not any(len(item.segments) for item in training):
        return "no training video has an action"
    if not any(p.requires_grad for p in detector.parameters()):
        return "nothing learns in this experiment"
    return None


def measure_routes(
    detector: Detector,
    activations: Sequence[Activations],
    training: Sequence[VideoItem],
    validation: Sequence[VideoItem],
    accelerator: Accelerator,
) -> Routes | None:
    """Return the ways to train on videos that are there; None on all processes but the main one.

    Args:
        detector: with what learns end to end; on its device.
        activations: of its streams, in a store that nothing is written to.
        validation: may be none.

    Raises:
        VideoError: not one of the videos that are tried can be read.
        MemoryError: the device's memory is too small to try the network.
    """
    config, processes = detector.config, accelerator.num_processes
    main, store, sampling = accelerator.is_main_process, activations[0].store, config.sampling
    active = [item for item in training if len(item.segments)]
    # Counted by one process for all: folders of several machines may not show the same files.
    counted: Any = count_workload(config, training, validation, processes) if main else None
    work: Workload = broadcast_object(counted)
    routes, closed, began = list[TrainingRoute](), list[str](), time.monotonic()

    def measure_cached(frozen_below: int, gives_up: str) -> None:
        frozen = freeze_below(config, frozen_below)
        cut = frozen.backbone.last_frozen_cut
        assert cut is not None
        wanted = [
            SpanRequest(
                of,
                training_spans(training, sampling, direction, config.cache.span)
                + evaluation_spans(validation, sampling.validation_overlap, sampling, direction),
                (cut,),
            )
            for of, direction in zip(activations, config.directions, strict=True)
        ]
        lacks = plan(wanted, accelerator, skip_gone=True)
        filling_h = estimate_s(lacks, config.training.workers) / processes / 3600
        step = measure_step(frozen, detector.classes, active[0], accelerator, cut)
        bounds = lacks.bytes, needed_bytes(lacks), store.url, store.files.free_bytes()
        name = f"cached {'block ' if isinstance(cut, int) else ''}{cut}"
        routes.append(TrainingRoute(name, gives_up, step, work.run_h(step), filling_h, *bounds))

    if any(p.requires_grad for n, p in detector.named_parameters() if ".backbone." not in n):
        learner = f", {LEARNERS[config.backbone.mode]} that learn" if config.backbone.learns else ""
        measure_cached(config.backbone.depth, f"augmentation, drop path{learner}")
    else:
        closed.append("cached features: nothing after the backbone learns")
    if (k := cached_block(config)) is not None:
        measure_cached(k, f"augmentation; drop path and what learns below block {k}")
    else:
        closed.append("cached block: nothing of the backbone would learn after one")
    pixels = measure_step(config, detector.classes, active[0], accelerator, None)
    if not main:
        return None
    reading = measure_reading(config, active)
    videos = config.data.videos
    decoding = end_to_end_routes(work, reading, pixels, videos, shutil.disk_usage(videos).free)
    return Routes((*decoding, *routes), closed, work, reading, time.monotonic() - began)


def end_to_end_routes(
    work: Workload, reading: ReadingCost, step: StepCost, videos: str, free: int
) -> tuple[TrainingRoute, TrainingRoute]:
    """Return what training on videos takes, and on decoded frames, which would lie beside them."""

    def run_h(decoded_s: float) -> float:
        read_s = work.samples * (decoded_s + reading.cropped_s)
        return work.run_h(step, read_s, work.validation_samples * decoded_s)

    # In the first epoch: all that any window may ask for.
    filling_h = work.overlapped_h(work.cached_frames * reading.decoded_s, 0.0)
    equal, bounds = "nothing but the disk: pixels are equal to the bit", (work.cached_bytes,) * 2
    return (
        TrainingRoute("raw", "nothing", step, run_h(reading.decoded_s)),
        TrainingRoute("frames", equal, step, run_h(0.0), filling_h, *bounds, videos, free),
    )


def _choose(routes: Sequence[TrainingRoute], hours: Sequence[float]) -> TrainingRoute:
    """Return the fastest route, or the first where differences are small: it gives up least."""
    enough = (1 + NOTICED) * min(hours)
    return next(route for route, each in zip(routes, hours, strict=True) if each <= enough)
