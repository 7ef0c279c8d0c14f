"""Ways to train on a dataset: what each takes, in bytes and hours, and what it gives up."""

from dataclasses import asdict, dataclass
from typing import Any

from configs.messages import markdown_table
from evaluate.reports.sections import format_duration
from extract.backbone.backbone import Cut
from train.cost.measure import ReadingCost, StepCost
from train.cost.workload import Workload

NOTICED = 0.02  # of a run; smaller differences are noise
COLUMNS = (
    *("route", "extra bytes", "free there", "preparation", "first run", "further run"),
    "gives up",
)
NUMBERS = (
    *("bytes", "needed_bytes", "fits"),
    *("preparation_hours", "first_run_hours", "further_run_hours"),
)
Place = tuple[str, int | None]
"""Where something would be written, and how many bytes are free there; None: nobody can say."""


@dataclass(frozen=True)
class CachedCost:
    """What training on a cached cut takes, whatever learns below a block staying as it is.

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
        closed: why the experiment cannot go this way; all numbers are then 0.
    """

    name: str
    gives_up: str
    place: str | None = None
    free_bytes: int | None = None
    bytes: int = 0
    needed_bytes: int = 0
    preparation_hours: float = 0.0
    further_run_hours: float = 0.0
    closed: str | None = None

    @property
    def first_run_hours(self) -> float:
        """Hours of the first run, its preparation included."""
        return self.preparation_hours + self.further_run_hours

    @property
    def fits(self) -> bool | None:
        """Return whether there is room for it; None where nobody can say."""
        if self.place is None:
            return True
        return None if self.free_bytes is None else self.needed_bytes <= self.free_bytes

    def row(self) -> tuple[str, ...]:
        """Return its cells of the table."""
        if self.closed:
            return (self.name, *("–",) * 5, f"not open: {self.closed}")
        free = "unknown" if self.place else ""
        if self.free_bytes is not None:
            free = _size(self.free_bytes) + ("" if self.fits else ": TOO SMALL")
        hours = self.preparation_hours, self.first_run_hours, self.further_run_hours
        times = (format_duration(3600 * each) for each in hours)
        return (self.name, _size(self.bytes), free, *times, self.gives_up)

    def to_dict(self) -> dict[str, Any]:
        """Return everything; nothing of what a closed route would take."""
        computed = {"first_run_hours": self.first_run_hours, "fits": self.fits}
        return asdict(self) | computed | (dict.fromkeys(NUMBERS) if self.closed else {})


@dataclass(frozen=True)
class Routes:
    """All ways to train, end to end and on cached activations, and what they come from."""

    whole: tuple[TrainingRoute, ...]
    cached: tuple[TrainingRoute, ...]
    work: Workload
    measured: Measurements

    def headline(self) -> str:
        """Return in one line what a run is, here."""
        work, validation = self.work, "no validation"
        if work.validations:
            validation = f"{work.validations} validations of {work.validation_windows:,} windows"
        return (
            f"a run: {work.epochs} epochs, {work.windows:,} windows, {validation}; "
            f"{work.processes} process(es) with {work.workers} worker(s) each, {work.cores} cores"
        )

    def table(self) -> str:
        """Return a line for each way, to be printed."""
        return markdown_table([COLUMNS, *(r.row() for r in (*self.whole, *self.cached))])

    def advice(self) -> list[str]:
        """Return what the numbers say, in a few lines."""
        work, reading, every = self.work, self.measured.reading, self.whole + self.cached
        decode_s = _drawn_s(work, reading, reading.decoded_s) / max(work.workers, 1)
        lines = [
            f"free there: on the disk of {self.whole[1].place} for frames and proxies, on that "
            f"of {self.cached[0].place} for activations",
            f"raw: of a window, decoding takes {decode_s:.2f} s "
            + (f"({work.workers} at once), " if work.workers else "(in turns, without workers), ")
            + f"the network {self.measured.pixels.trained_s:.2f} s",
        ]
        if no_room := [route.name for route in every if not route.closed and route.fits is False]:
            lines.append(f"no room on the disk: {', '.join(no_room)}")
        usable = [route for route in every if not route.closed and route.fits is not False]
        whole = [route for route in usable if route in self.whole]
        # The first one where differences are small: it gives up least.
        first, many = (
            next(r for r, h in zip(whole, of, strict=True) if h <= (1 + NOTICED) * min(of))
            for of in ([r.first_run_hours for r in whole], [r.further_run_hours for r in whole])
        )
        line = f"recommended end to end: {first.name}"
        if many != first:
            line += f" for one run, {many.name} for many"
        for route in usable[len(whole) :]:
            share = route.further_run_hours / self.whole[0].further_run_hours
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
            "routes": [route.to_dict() for route in (*self.whole, *self.cached)],
            "advice": self.advice(),
            "work": asdict(self.work),
            "trials": asdict(self.measured),
        }


def compare(
    work: Workload, measured: Measurements, videos: Place, store: Place, learner: str | None
) -> Routes:
    """Return what every way takes, from what was counted and what was measured.

    Args:
        videos: where frames and proxies would lie; `store`: where activations would.
        learner: what of the backbone learns end to end, None for nothing.
    """
    reading, part = measured.reading, measured.part

    def end_to_end_h(decoded_s: float) -> float:
        drawn_s = _drawn_s(work, reading, decoded_s)
        return _run_h(work, measured.pixels, drawn_s, work.validation_samples * decoded_s)

    def of_cache(name: str, cost: CachedCost | None, gives_up: str, closed: str) -> TrainingRoute:
        if cost is None:
            return TrainingRoute(name, "", *store, closed=closed)
        hours = cost.filling_h, _run_h(work, cost.step, 0.0, 0.0)
        return TrainingRoute(name, gives_up, *store, cost.bytes, cost.needed, *hours)

    raw = TrainingRoute("raw", "nothing", further_run_hours=end_to_end_h(reading.decoded_s))
    # In the first epoch: all that any window may ask for.
    hours = _overlapped_h(work, work.cached_frames * reading.decoded_s, 0.0), end_to_end_h(0.0)
    equal, total = "nothing but the disk: pixels are equal to the bit", work.cached_bytes
    frames = TrainingRoute("frames", equal, *videos, total, total, *hours)
    why = "inputs of more pixels than proxies have"
    proxies = TrainingRoute("proxies", "", *videos, closed=why)
    if reading.proxy_decoded_s is not None:
        total = round(reading.proxy_bytes * work.frames)
        gives_up = f"detail beyond {reading.proxy_side} px, H.264's losses"
        gives_up += "; larger than the videos" if total > work.videos_bytes else ""
        made_h = reading.proxy_made_s * work.frames / work.cores / 3600
        hours = made_h, end_to_end_h(reading.proxy_decoded_s)
        proxies = TrainingRoute(
            f"proxies of {reading.proxy_side} px", gives_up, *videos, total, total, *hours
        )
    lost = f"augmentation, drop path{f', {learner} that learn' if learner else ''}"
    why = "nothing behind the backbone learns"
    on_features = of_cache("cached features", measured.features, lost, why)
    name, lost, why = "cached block", "", "nothing of the backbone would learn behind one"
    if part is not None:
        name = "cached ladder" if part.cut == "ladder" else f"cached block {part.cut}"
        lost = f"augmentation; drop path and what learns below block {part.frozen_below}"
    cached = on_features, of_cache(name, part, lost, why)
    return Routes((raw, frames, proxies), cached, work, measured)


def _drawn_s(work: Workload, reading: ReadingCost, decoded_s: float) -> float:
    """Return a process's seconds for the frames of a training window."""
    return work.samples * (decoded_s + reading.drawn_s)


def _run_h(work: Workload, window: StepCost, drawn_s: float, plain_s: float) -> float:
    """Return the hours of all epochs with their validations.

    Args:
        drawn_s: for a training window's frames; `plain_s`: for those of a validation.
    """
    training_h = _overlapped_h(work, work.windows * drawn_s, work.windows * window.trained_s)
    validation_h = _overlapped_h(work, plain_s, work.validation_windows * window.tested_s)
    return training_h + work.validations * validation_h


def _overlapped_h(work: Workload, decode_s: float, network_s: float) -> float:
    """Return the hours of decoding and network, one beside the other where there are workers."""
    seconds = decode_s + network_s
    if work.workers:
        seconds = max(decode_s / work.workers, network_s)
    return seconds / work.processes / 3600


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
