"""The one seam: an activation from the cache if it is there and true, else computed and written."""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from tqdm import tqdm

from cache.address import DTYPES, FingerprintInfo, VideoInfo
from cache.errors import Damaged, Missing, StoreError, StoreUnreachable
from cache.format.writer import Writer
from cache.store import Store
from extract.activations.fingerprints import (
    Description,
    check_plain,
    describe,
    fingerprint,
    settings,
    structure,
)
from extract.activations.glance import glance_at_weights
from extract.activations.inputs import PassInput, job_pieces
from extract.activations.passes import Pass
from extract.activations.stored import Cached, Counts, Places, adopted, deepest, known_fingerprints
from extract.backbone.imported import AnyBackbone, require_pixels
from extract.backbone.precision import autocast
from extract.sampling.spans import Span
from extract.settings.backbone import Cut, Precision
from extract.settings.cache import CacheConfig
from extract.settings.pixels import PixelConfig
from extract.video.reader import VideoError

AGAIN_S = 30.0  # until a store that did not answer is tried again
Watch = Callable[[Cut, Tensor], None]
Write = Callable[[Cached, Span, Tensor, int], None]


class Activations:
    """A backbone's activations, stored or computed; what is computed is stored (see `close`).

    Args:
        store: open for writing, if anything may have to be computed.
        backbone: in eval mode, on its device. It may change: the next call sees it.
        origin: file of the weights, for people who look at the store.

    Attributes:
        unkept: keys of activations that the store could not take, because it did not answer.
        unkept_cause: why, the last time.
    """

    def __init__(
        self,
        store: Store,
        backbone: AnyBackbone,
        pixels: PixelConfig,
        precision: Precision,
        config: CacheConfig,
        origin: str,
    ) -> None:
        self.store, self.backbone, self.pixels = store, backbone, pixels
        self.precision, self.config, self.origin = precision, config, origin
        self.counts = Counts()
        self._known: tuple[object, Places] = None, {}
        self._descriptions: dict[Cut, Description] = {}
        self._writer: Writer | None = None
        self._described: set[str] = set()
        self._videos: set[VideoInfo] = set()
        self._put: set[bytes] = set()
        self.unkept: set[bytes] = set()
        self.unkept_cause = ""
        self._to_describe: list[tuple[Cached, VideoInfo]] = []
        self._waiting: set[bytes] = set()  # written, but no flush has come through since
        self._again_at = 0.0  # when to try the store again, where it did not answer

    def cached_cuts(self) -> Places:
        """Return where activations are, or would be, for the backbone as it is now.

        Raises:
            ValueError: it computes what no fingerprint can name (hooks, replaced methods).
        """
        check_plain(self.backbone)
        state = glance_at_weights(self.backbone), structure(self.backbone)
        if state != self._known[0]:
            of = settings(self.backbone.config, self.pixels, self.precision)
            self._descriptions = describe(self.backbone, of)
            names = {cut: fingerprint(each) for cut, each in self._descriptions.items()}
            places = {
                cut: Cached(self.store, cut, name, self.config.dtype, adopted(self.store, name))
                for cut, name in names.items()
            }
            self._known = state, places
        return self._known[1]

    def autocast(self) -> torch.autocast:
        """Return the context of `precision` for a pass."""
        return autocast(self.precision, require_pixels(self.backbone).mean.device)

    def get(self, span: Span, cut: Cut = "features") -> Tensor:
        """Return features [T/2, C] or tokens [T/2, P, C] of a span, in the dtype of the store.

        Raises:
            ValueError: the backbone has no such cut.
            VideoError: it has to be computed, but the video cannot be read.
        """
        places = self.cached_cuts()
        if cut not in places:
            raise ValueError(
                f"the backbone has no cut {cut!r}; its cuts are {', '.join(map(str, places))}"
            )
        if places[cut].address(span).key in self._put:
            self.flush()
        try:
            found = places[cut].read(span)
            self.counts.hits += 1
            return found
        except Missing:
            pass
        except (Damaged, StoreUnreachable) as error:
            tqdm.write(f"warning: {error}; it is computed again")
        return self._computed(places, span, cut).to("cpu", DTYPES[self.config.dtype])

    def _computed(self, places: Places, span: Span, cut: Cut) -> Tensor:
        done: list[Tensor] = []
        run: Pass | None = None
        start = deepest(places, span, cut)
        task = PassInput(0, span, None if start is None else places[start])
        device = require_pixels(self.backbone).mean.device
        try:
            for piece in job_pieces([task], self.pixels, device):
                if run is None or run.must_restart(piece):
                    done.clear()
                    start = None if piece.window else start
                    run = self.start_pass(
                        places, span, start, [cut], lambda _, rows: done.append(rows)
                    )
                run.push(piece)
        except VideoError as error:
            raise VideoError(
                f"{error}; its activation is not in {self.store.url} either: bring the video back "
                "and run `python extract/run.py`"
            ) from error
        return torch.cat(done[::-1] if run is not None and run.backwards else done)

    def is_stale(self, cuts: Iterable[Cut]) -> bool:
        """Return whether the store has one of the cuts, but only for other weights of this file."""
        places = self.cached_cuts()
        stored = known_fingerprints(self.store)
        others = {
            info.cut for info in stored.values() if self.origin in info.checkpoint.split("\n")
        }
        return any(cut in others and places[cut].fingerprint not in stored for cut in cuts)

    def start_pass(
        self,
        places: Places,
        span: Span,
        start: Cut | None,
        cuts: Sequence[Cut],
        watch: Watch = lambda cut, rows: None,
        write: Write | None = None,
    ) -> Pass:
        """Begin a pass over a span, from a stored cut or from pixels, that stores these cuts.

        Args:
            places: for the weights of the pass.
            cuts: in the order of a pass.
            watch: is given what is stored, in the order in which it is finished.
            write: stores it in place of `write`.
        """
        if start is None:
            self.counts.full += 1
        else:
            self.counts.partial += 1

        def store(cut: Cut, rows: Tensor, first: int) -> None:
            (write or self.write)(places[cut], span, rows, first)
            watch(cut, rows)

        return Pass(require_pixels(self.backbone), self.precision, span, start, cuts, store)

    def write(self, place: Cached, span: Span, rows: Tensor, first: int = 0) -> None:
        """Store an activation, or rows of it from `first` on: [n, C] or [n, P, C].

        While the store does not answer, what fits into memory waits; the rest is `unkept`.
        """
        address = place.address(span)
        if address.key in self.unkept or not self._takes_more():
            self.unkept.add(address.key)
            return
        with self._outage_survived():
            self._writing()
        if self._writer is None:
            self.unkept.add(address.key)
            return
        self._to_describe.append((place, span.video))
        with self._outage_survived():
            if time.monotonic() >= self._again_at:
                self._describe()
        with self._outage_survived():
            self._writer.write(address, rows, first)  # keeps them where a flush then fails
        self._put.add(address.key)
        self._waiting.add(address.key)
        if not self._writer.waiting:
            self._waiting.clear()

    def describe_fingerprint(self, place: Cached) -> None:
        """Let the store know that the weights are also those of this file, unless it does."""
        if place.fingerprint in self._described:
            return
        known = self.store.fingerprints.get(place.fingerprint)
        files = known.checkpoint.split("\n") if known else []
        if self.origin not in files:
            about = known.about if known else self._descriptions[place.cut]
            origins = "\n".join([*files, self.origin])
            info = FingerprintInfo(place.fingerprint, place.cut, origins, about)
            self._writing().describe(info)
        self._described.add(place.fingerprint)

    def describe(self, video: VideoInfo) -> None:
        """Let the store know a video by its name, unless it does."""
        if self.store.videos_by_name.get(video.name) != video and video not in self._videos:
            self._writing().describe(video)
            self._videos.add(video)

    def flush(self) -> None:
        """Make what was put so far survive a kill; from then on everybody sees it."""
        if self._writer is not None:
            with self._outage_survived():
                self._describe()
                self._writer.flush()
                self._put.clear()
                self._again_at = 0.0
                self.store.refresh()
            if not self._writer.waiting:
                self._waiting.clear()

    def close(self) -> None:
        """Flush, and put what was written in its lasting form; what still waits is `unkept`."""
        if self._writer is not None:
            self._end.detach()
            with self._outage_survived():
                self._describe()
                self._writer.close()
            if self._writer.waiting:
                self.unkept |= self._waiting
            self._writer.lease.release()
            self._writer, self._described, self._videos = None, set(), set()
            self._put.clear()
            self._waiting.clear()
            self._to_describe.clear()
            with self._outage_survived():
                self.store.refresh()

    def _describe(self) -> None:
        """Describe what is written; what the store does not answer to is tried again later."""
        while self._to_describe:
            place, video = self._to_describe[-1]
            self.describe_fingerprint(place)
            self.describe(video)
            self._to_describe.pop()

    def _takes_more(self) -> bool:
        """Return whether a store that did not answer answers again, or memory can hold more."""
        if time.monotonic() < self._again_at:
            return self._writer is not None and self._writer.waiting < self._writer.flush_bytes
        if self._again_at and self._writer is not None:
            self.flush()
            return self._writer.waiting < self._writer.flush_bytes
        return True

    @contextmanager
    def _outage_survived(self) -> Iterator[None]:
        """Go on where the store does not answer; the first time, print a warning."""
        try:
            yield
        except StoreUnreachable as error:
            if not self.unkept_cause:
                tqdm.write(f"warning: {error}; this run goes on, and the store is tried again")
            self.unkept_cause = str(error)
            self._again_at = time.monotonic() + AGAIN_S

    def _writing(self) -> Writer:
        if self._writer is None:
            self._writer = self.store.writer(flush_seconds=self.config.flush_s)
            # A script that ends without `close` loses nothing either.
            self._end = weakref.finalize(self, _close, self._writer)
        return self._writer


def _close(writer: Writer) -> None:
    with suppress(OSError, StoreError):
        writer.close()
