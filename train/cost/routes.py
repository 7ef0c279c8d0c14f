"""Ways to train on a dataset: what each takes, in bytes and hours, and what it gives up."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from extract.backbone.backbone import Cut
from train.cost.measure_network import Passes, Trials
from train.cost.measure_reading import Reading
from train.cost.workload import Filling, Workload

NOTICED = 0.02  # of a run; smaller differences are noise
COLUMNS = (
    *("route", "extra bytes", "free there", "preparation", "first run", "further run"),
    "gives up",
)


@dataclass(frozen=True)
class Place:
    """Where something would be written, and how much is free there; None: nobody can say."""

    name: str
    free: int | None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TrainingRoute:
    """One way to train.

    Args:
        place: where what it writes would lie; None where it writes nothing.
        bytes: that it keeps there beside the videos; `needed`: that must be free meanwhile.
        preparation_h: hours that only the first run takes; `run_h`: that every run takes.
        gives_up: in words.
        closed: why the experiment cannot go this way; all numbers are then 0.
    """

    name: str
    place: Place | None
    bytes: int
    needed: int
    preparation_h: float
    run_h: float
    gives_up: str
    closed: str | None = None

    @property
    def first_run_h(self) -> float:
        """Hours of the first run, its preparation included."""
        return self.preparation_h + self.run_h

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where nobody can say."""
        if self.place is None:
            return True
        return None if self.place.free is None else self.needed <= self.place.free

    def row(self) -> tuple[str, ...]:
        """Return its cells of the table."""
        if self.closed:
            return (self.name, *("–",) * 5, f"not open: {self.closed}")
        free = "" if self.place is None else "unknown"
        if self.place is not None and self.place.free is not None:
            free = size(self.place.free) + ("" if self.fits else ": TOO SMALL")
        hours = self.preparation_h, self.first_run_h, self.run_h
        return (self.name, size(self.bytes), free, *map(duration, hours), self.gives_up)

    def to_dict(self) -> dict[str, Any]:
        """Return everything; nothing of what a closed route would take."""
        return {
            "name": self.name,
            "bytes": None if self.closed else self.bytes,
            "needed_bytes": None if self.closed else self.needed,
            "place": self.place and self.place.name,
            "free_bytes": self.place and self.place.free,
            "fits": None if self.closed else self.fits,
            "preparation_hours": None if self.closed else self.preparation_h,
            "first_run_hours": None if self.closed else self.first_run_h,
            "further_run_hours": None if self.closed else self.run_h,
            "gives_up": self.gives_up,
            "closed": self.closed,
        }


@dataclass(frozen=True)
class Routes:
    """All ways to train, end to end and on cached activations, and what they come from."""

    whole: tuple[TrainingRoute, ...]
    cached: tuple[TrainingRoute, ...]
    work: Workload
    trials: Trials

    @property
    def raw(self) -> TrainingRoute:
        """The way without any preparation."""
        return self.whole[0]

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
        rows = [COLUMNS, ("---",) * len(COLUMNS), *(r.row() for r in (*self.whole, *self.cached))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)

    def advice(self) -> list[str]:
        """Return what the numbers say, in a few lines."""
        lines = [
            f"free there: on the disk of {self.whole[1].place} for frames and proxies, on that of "
            f"{self.cached[0].place} for activations",
            "; ".join([self._bound(), *map(self._pays, _open(self.whole[1:]))]),
        ]
        no_room = [route.name for route in (*self.whole, *self.cached) if route.fits is False]
        if no_room:
            lines.append(f"no room on the disk: {', '.join(no_room)}")
        usable = [route for route in _open(self.whole) if route.fits is not False]
        first = _quickest(usable, lambda route: route.first_run_h)
        many = _quickest(usable, lambda route: route.run_h)
        line = f"recommended end to end: {first.name}"
        if many != first:
            line += f" for one run, {many.name} for many"
        for route in _open(self.cached):
            if route.fits is not False:
                line += f"; {route.name}: a further run takes {route.run_h / self.raw.run_h:.1%}"
                line += " of one from raw videos"
        origin = (
            f"estimated from {self.trials.seconds:.0f} s of trials on {len(self.trials.videos)} "
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
            "trials": asdict(self.trials),
        }

    def _bound(self) -> str:
        """Say which of decoding and network training on the videos waits for."""
        work, raw, network = self.work, self.trials.raw, self.trials.network
        decode_s = (raw.begin_s + work.samples * raw.drawn_s) / max(work.workers, 1)
        ratio = decode_s / _window(work, network.clip, network.head).trained_s
        who = "decoding takes {} as long as the network"
        if ratio < 1:
            ratio, who = 1 / ratio, "the network takes {} as long as decoding"
        how = f"{work.workers} at once beside it" if work.workers else "in turns, without workers"
        return f"raw: {who.format(f'{ratio:.1f}x')} ({how})"

    def _pays(self, route: TrainingRoute) -> str:
        saved_h = self.raw.run_h - route.run_h
        if saved_h < NOTICED * self.raw.run_h:
            return f"{route.name} would save no time"
        epochs = route.preparation_h / saved_h * self.work.epochs
        return f"{route.name} pay after {epochs:,.0f} epochs (a run has {self.work.epochs})"


def compare(
    work: Workload,
    trials: Trials,
    videos: Place,
    store: Place,
    side: int | None,
    learner: str | None,
    features: Filling | None,
    part: tuple[int, Cut, Filling] | None,
) -> Routes:
    """Compute what every way takes, from what was counted and what was measured.

    Args:
        videos: where frames and proxies would lie; `store`: where activations would.
        side: the short side of proxies; None where none is large enough.
        learner: what of the backbone learns end to end, None for nothing.
        features: what the cache lacks of them; None where nothing behind the backbone learns.
        part: from which block on adapters would learn, on which cut, and what the cache lacks of
            it; None where nothing would.
    """
    frames, proxies = _frames(work, trials, videos), _proxies(work, trials, videos, side)
    cached = _features(work, trials, store, learner, features), _part(work, trials, store, part)
    return Routes((_raw(work, trials), frames, proxies), cached, work, trials)


def _raw(work: Workload, trials: Trials) -> TrainingRoute:
    return TrainingRoute("raw", None, 0, 0, 0.0, _end_to_end_h(work, trials, trials.raw), "nothing")


def _frames(work: Workload, trials: Trials, place: Place) -> TrainingRoute:
    return TrainingRoute(
        "frames",
        place,
        work.cached_bytes,
        work.cached_bytes,
        # In the first epoch: all that any window may ask for.
        _overlapped_h(work, work.cached_frames * trials.raw.plain_s, 0.0),
        _end_to_end_h(work, trials, trials.frames),
        "nothing but the disk: pixels are equal to the bit",
    )


def _proxies(work: Workload, trials: Trials, place: Place, side: int | None) -> TrainingRoute:
    making, reading = trials.making, trials.proxies
    if side is None or making is None or reading is None:
        return _closed("proxies", place, "inputs of more pixels than proxies have")
    total = round(making.frame_bytes * work.frames)
    gives_up = f"detail beyond {side} px, H.264's losses"
    if total > work.videos_bytes:
        gives_up += "; larger than the videos"
    made_h = making.frame_s * work.frames / work.cores / 3600
    run_h = _end_to_end_h(work, trials, reading)
    return TrainingRoute(f"proxies of {side} px", place, total, total, made_h, run_h, gives_up)


def _features(
    work: Workload, trials: Trials, place: Place, learner: str | None, lacks: Filling | None
) -> TrainingRoute:
    if lacks is None:
        return _closed("cached features", place, "nothing behind the backbone learns")
    head = trials.network.head
    return TrainingRoute(
        "cached features",
        place,
        lacks.bytes,
        lacks.needed,
        _filling_h(work, trials, lacks),
        _run_h(work, head),
        f"augmentation, drop path{f', {learner} that learn' if learner else ''}",
    )


def _part(
    work: Workload, trials: Trials, place: Place, part: tuple[int, Cut, Filling] | None
) -> TrainingRoute:
    network = trials.network
    if part is None or network.part is None:
        return _closed("cached block", place, "nothing of the backbone would learn behind one")
    k, cut, lacks = part
    return TrainingRoute(
        "cached ladder" if cut == "ladder" else f"cached block {cut}",
        place,
        lacks.bytes,
        lacks.needed,
        _filling_h(work, trials, lacks),
        _run_h(work, _window(work, network.part, network.head)),
        f"augmentation; drop path and what learns below block {k}",
    )


def _closed(name: str, place: Place, why: str) -> TrainingRoute:
    return TrainingRoute(name, place, 0, 0, 0.0, 0.0, "", why)


def _end_to_end_h(work: Workload, trials: Trials, reading: Reading) -> float:
    network = trials.network
    return _run_h(work, _window(work, network.clip, network.head), reading)


def _window(work: Workload, clip: Passes, head: Passes) -> Passes:
    """Return what the network costs for a window: its clips in all streams, and the head."""
    clips = work.streams * work.clips
    return Passes(clips * clip.tested_s + head.tested_s, clips * clip.trained_s + head.trained_s)


def _run_h(work: Workload, window: Passes, reading: Reading | None = None) -> float:
    """Return the hours of all epochs with their validations.

    Args:
        window: through the network; `reading`: its frames, None where activations are read.
    """
    drawn_s = plain_s = 0.0
    if reading is not None:
        drawn_s = reading.begin_s + work.samples * reading.drawn_s
        plain_s = work.validation_samples * reading.plain_s
    training_h = _overlapped_h(work, work.windows * drawn_s, work.windows * window.trained_s)
    validation_h = _overlapped_h(work, plain_s, work.validation_windows * window.tested_s)
    return training_h + work.validations * validation_h


def _filling_h(work: Workload, trials: Trials, lacks: Filling) -> float:
    decode_s = lacks.frames * trials.raw.plain_s
    return _overlapped_h(work, decode_s, lacks.clips * trials.network.clip.tested_s)


def _overlapped_h(work: Workload, decode_s: float, network_s: float) -> float:
    """Return the hours of decoding and network, one beside the other where there are workers."""
    seconds = decode_s + network_s
    if work.workers:
        seconds = max(decode_s / work.workers, network_s)
    return seconds / work.processes / 3600


def _open(routes: Sequence[TrainingRoute]) -> list[TrainingRoute]:
    return [route for route in routes if not route.closed]


def _quickest(
    routes: Sequence[TrainingRoute], hours: Callable[[TrainingRoute], float]
) -> TrainingRoute:
    """Return the quickest way; the first one where differences are small: it gives up least."""
    least = min(map(hours, routes))
    return next(route for route in routes if hours(route) <= (1 + NOTICED) * least)


def size(count: int) -> str:
    """Return bytes as people read them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def duration(hours: float) -> str:
    """Return hours as people read them."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:,.1f} h"
