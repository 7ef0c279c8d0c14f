"""Ways to train on a dataset: what each takes here, in bytes and hours, and what it gives up."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator

from configs.messages import format_bytes, markdown_table
from evaluate.reports.sections import format_duration
from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, estimate_s, needed_bytes, plan
from extract.settings.backbone import Cut
from train.cost.measure import ReadingCost, StepCost, measure_reading, measure_step
from train.cost.workload import Workload, cached_block, count_workload, freeze_below
from train.data.cached import evaluation_spans, training_spans
from train.data.videos import VideoItem
from train.detector.model import Detector

LEARNERS = {"adapter": "adapters", "side": "adapters beside", "full": "transformer blocks"}
NOTICED = 0.02  # of a run; smaller differences are noise
COLUMNS = (
    *("route", "extra bytes", "free there", "preparation", "first run", "further run"),
    "gives up",
)
Place = tuple[str, int | None]
"""Where something would be written, and how many bytes are free there; None: nobody can say."""


@dataclass(frozen=True)
class CachedCost:
    """What training on a cached cut takes, with all below block `frozen_below` as it is.

    Args:
        bytes: that the cache lacks, before compression; `needed`: that must be free meanwhile.
        filling_h: hours of the passes that are missing.
    """

    cut: Cut
    frozen_below: int
    bytes: int
    needed: int
    filling_h: float
    step: StepCost


@dataclass(frozen=True)
class Measurements:
    """All that was measured, in `seconds`: reading, steps from pixels and on what can be cached.

    Args:
        features: None where nothing behind the backbone learns.
        part: of a block; None where nothing of the backbone would learn behind one.
    """

    seconds: float
    reading: ReadingCost
    pixels: StepCost
    features: CachedCost | None
    part: CachedCost | None


@dataclass(frozen=True)
class TrainingRoute:
    """One way to train.

    Args:
        gives_up: in words.
        place: where what it writes would lie, with `free_bytes`; None where it writes nothing.
        bytes: that it keeps there beside the videos; `needed_bytes`: that must be free meanwhile.
        preparation_hours: that only the first run takes; `further_run_hours`: that every run takes.
    """

    name: str
    gives_up: str
    place: str | None = None
    free_bytes: int | None = None
    bytes: int = 0
    needed_bytes: int = 0
    preparation_hours: float = 0.0
    further_run_hours: float = 0.0

    @property
    def first_run_hours(self) -> float:
        """Hours of the first run, its preparation included."""
        return self.preparation_hours + self.further_run_hours

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where nobody can say."""
        if self.place is None:
            return True
        return None if self.free_bytes is None else self.needed_bytes <= self.free_bytes

    def row(self) -> tuple[str, ...]:
        """Return its cells of the table."""
        free = "unknown" if self.place else ""
        if self.free_bytes is not None:
            free = format_bytes(self.free_bytes) + ("" if self.fits else ": TOO SMALL")
        hours = self.preparation_hours, self.first_run_hours, self.further_run_hours
        times = (format_duration(3600 * each) for each in hours)
        return (self.name, format_bytes(self.bytes), free, *times, self.gives_up)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, in bytes and hours."""
        return asdict(self) | {"first_run_hours": self.first_run_hours, "fits": self.fits}


@dataclass(frozen=True)
class Routes:
    """The ways to train, end to end and on cached activations, and what they come from.

    Args:
        closed: why the experiment cannot go the others.
    """

    end_to_end: tuple[TrainingRoute, ...]
    cached: tuple[TrainingRoute, ...]
    closed: tuple[str, ...]
    work: Workload
    measured: Measurements

    def text(self) -> str:
        """Return what a run is here, a table of the ways to train, and the advice."""
        work, validation = self.work, "no validation"
        if work.validations:
            validation = f"{work.validations} validations of {work.validation_windows:,} windows"
        headline = (
            f"a run: {work.epochs} epochs, {work.windows:,} windows, {validation}; "
            f"{work.processes} process(es) with {work.workers} worker(s) each, {work.cores} cores"
        )
        table = markdown_table([COLUMNS, *(r.row() for r in (*self.end_to_end, *self.cached))])
        return "\n".join([headline, table, *self.advice()])

    def advice(self) -> list[str]:
        """Return what the numbers say, in a few lines."""
        work, reading, every = self.work, self.measured.reading, self.end_to_end + self.cached
        decode_s = work.samples * (reading.decoded_s + reading.cropped_s) / max(work.workers, 1)
        network_s = self.measured.pixels.trained_s
        lines = [
            f"free there: on the disk of {self.end_to_end[1].place} for frames"
            + (f", on that of {self.cached[0].place} for activations" if self.cached else ""),
            f"raw: of a window, decoding takes {decode_s:.2f} s "
            + (f"({work.workers} at once), " if work.workers else "(in turns, without workers), ")
            + f"the network {network_s:.2f} s"
            + (", so proxies would help: see extract/transcode.py" if decode_s > network_s else ""),
            *(f"not open: {why}" for why in self.closed),
        ]
        if no_room := [route.name for route in every if route.fits is False]:
            lines.append(f"no room on the disk: {', '.join(no_room)}")
        usable = [route for route in self.end_to_end if route.fits is not False]
        first = _choose(usable, [route.first_run_hours for route in usable])
        further = _choose(usable, [route.further_run_hours for route in usable])
        line = f"recommended end to end: {first.name}"
        if further != first:
            line += f" for one run, {further.name} for many"
        for route in self.cached:
            if route.fits is not False:
                share = route.further_run_hours / self.end_to_end[0].further_run_hours
                line += f"; {route.name}: a further run takes {share:.1%} of one from raw videos"
        origin = (
            f"estimated from {self.measured.seconds:.0f} s of trials on {len(reading.videos)} "
            "videos, with the machine as busy as it is now; starting up, slow disks and "
            "suppression are not in it; it may be off by half"
        )
        return [*lines, line, origin]

    def to_dict(self) -> dict[str, Any]:
        """Return the table, in bytes and hours, with all that it comes from."""
        return {
            "routes": [route.to_dict() for route in (*self.end_to_end, *self.cached)],
            "advice": self.advice(),
            "work": asdict(self.work),
            "trials": asdict(self.measured),
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
    config, processes, began = detector.config, accelerator.num_processes, time.monotonic()
    active = [item for item in training if len(item.segments)]

    def measure_cut(cut: Cut, frozen_below: int) -> CachedCost:
        overlap = config.sampling.validation_overlap
        wanted = [
            SpanRequest(
                of,
                training_spans(training, config.sampling, direction, config.cache.span)
                + evaluation_spans(validation, overlap, config.sampling, direction),
                (cut,),
            )
            for of, direction in zip(activations, config.directions, strict=True)
        ]
        lacks = plan(wanted, accelerator, skip_gone=True)
        filling_h = estimate_s(lacks, config.training.workers) / processes / 3600
        frozen = freeze_below(config, frozen_below)
        step = measure_step(frozen, detector.classes, active[0], accelerator, cut)
        return CachedCost(cut, frozen_below, lacks.bytes, needed_bytes(lacks), filling_h, step)

    behind = [p for name, p in detector.named_parameters() if ".backbone." not in name]
    features, part, k = None, None, cached_block(config)
    if any(p.requires_grad for p in behind):
        features = measure_cut("features", config.backbone.depth)
    if k is not None:
        cut = freeze_below(config, k).backbone.last_frozen_cut
        assert cut is not None
        part = measure_cut(cut, k)
    pixels = measure_step(config, detector.classes, active[0], accelerator, None)
    if not accelerator.is_main_process:
        return None
    reading = measure_reading(config, active)
    videos, store = config.data.videos, activations[0].store
    return compare_routes(
        count_workload(config, training, validation, processes),
        Measurements(time.monotonic() - began, reading, pixels, features, part),
        (videos, shutil.disk_usage(videos).free),
        (store.url, store.files.free_bytes()),
        LEARNERS[config.backbone.mode] if config.backbone.learns else None,
    )


def compare_routes(
    work: Workload, measured: Measurements, videos: Place, store: Place, learner: str | None
) -> Routes:
    """Return what every way takes, from what was counted and what was measured.

    Args:
        videos: where frames would lie; `store`: where activations would.
        learner: what of the backbone learns end to end, None for nothing.
    """
    reading, features, part = measured.reading, measured.features, measured.part

    def end_to_end_h(decoded_s: float) -> float:
        read_s = work.samples * (decoded_s + reading.cropped_s)
        return _run_h(work, measured.pixels, read_s, work.validation_samples * decoded_s)

    def on_cache(name: str, cost: CachedCost, gives_up: str) -> TrainingRoute:
        hours = cost.filling_h, _run_h(work, cost.step, 0.0, 0.0)
        return TrainingRoute(name, gives_up, *store, cost.bytes, cost.needed, *hours)

    raw = TrainingRoute("raw", "nothing", further_run_hours=end_to_end_h(reading.decoded_s))
    # In the first epoch: all that any window may ask for.
    hours = _overlapped_h(work, work.cached_frames * reading.decoded_s, 0.0), end_to_end_h(0.0)
    equal, total = "nothing but the disk: pixels are equal to the bit", work.cached_bytes
    frames = TrainingRoute("frames", equal, *videos, total, total, *hours)
    cached, closed = [], []
    if features is None:
        closed.append("cached features: nothing behind the backbone learns")
    else:
        lost = f"augmentation, drop path{f', {learner} that learn' if learner else ''}"
        cached.append(on_cache("cached features", features, lost))
    if part is None:
        closed.append("cached block: nothing of the backbone would learn behind one")
    else:
        name = "cached ladder" if part.cut == "ladder" else f"cached block {part.cut}"
        lost = f"augmentation; drop path and what learns below block {part.frozen_below}"
        cached.append(on_cache(name, part, lost))
    return Routes((raw, frames), tuple(cached), tuple(closed), work, measured)


def _choose(routes: Sequence[TrainingRoute], hours: Sequence[float]) -> TrainingRoute:
    """Return the fastest route, or the first where differences are small: it gives up least."""
    enough = (1 + NOTICED) * min(hours)
    return next(route for route, each in zip(routes, hours, strict=True) if each <= enough)


def _run_h(work: Workload, window: StepCost, read_s: float, validation_s: float) -> float:
    """Return the hours of all epochs with their validations.

    Args:
        read_s: for a training window's frames; `validation_s`: for those of a validation.
    """
    training_h = _overlapped_h(work, work.windows * read_s, work.windows * window.trained_s)
    network_s = work.validation_windows * window.tested_s
    return training_h + work.validations * _overlapped_h(work, validation_s, network_s)


def _overlapped_h(work: Workload, decode_s: float, network_s: float) -> float:
    """Return the hours of decoding and network, one beside the other where there are workers."""
    seconds = decode_s + network_s
    if work.workers:
        seconds = max(decode_s / work.workers, network_s)
    return seconds / work.processes / 3600
