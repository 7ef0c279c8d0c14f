"""Activations that are in a store, and how many were read or computed."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from cache.address import Address, FingerprintInfo
from cache.dtypes import Dtype
from cache.errors import StoreUnreachable
from cache.store import Store
from extract.sampling.spans import Span
from extract.settings.backbone import Cut

ADOPTED_AS = "adopted_as"
"""In a fingerprint's description: the fingerprints that its activations are found under, too."""
PAUSE_S = 5.0  # until a store that did not answer is asked again
T = TypeVar("T")


@dataclass
class Counts:
    """How activations came about: read, computed from a stored block, or from pixels."""

    hits: int = 0
    partial: int = 0
    full: int = 0

    def __str__(self) -> str:
        return f"{self.hits:,} cached, {self.partial:,} partial and {self.full:,} full passes"


@dataclass(frozen=True)
class Cached:
    """Activations at one cut as a store has them; small enough to be sent to loader workers.

    Args:
        adopted: other fingerprints whose activations were found to be equal.
        patience_s: how long reading waits for a store that does not answer.
    """

    store: Store
    cut: Cut
    fingerprint: str
    dtype: Dtype
    adopted: tuple[str, ...] = ()
    patience_s: float = 0.0

    def address(self, span: Span, fingerprint: str | None = None) -> Address:
        """Return where the span's activation is written; by default under its own fingerprint."""
        return Address(
            fingerprint=fingerprint or self.fingerprint,
            dtype=self.dtype,
            video=span.video.digest,
            direction=span.direction,
            span=span.kind,
            frames=span.frames,
            rows=span.rows,
        )

    def contains(self, span: Span) -> bool:
        """Return whether the whole activation is there."""
        return self._found(span) is not None

    def read(self, span: Span, rows: slice = slice(None)) -> Tensor:
        """Return an activation, or rows of it: features [n, C] or tokens [n, P, C], as stored.

        Raises:
            Missing, Damaged: it is not there, or not what was written.
            StoreUnreachable: the store does not answer.
        """
        address = self._found(span) if self.adopted else None
        place = address or self.address(span)
        return self._waiting(lambda: self.store.read(place, rows.start or 0, rows.stop))

    def read_all(self, spans: Sequence[Span]) -> Iterator[Tensor]:
        """Yield whole activations; see `read`. Neighbours in the store are read in one go."""
        # Features of a thousand windows are small; one window's tokens may fill a gigabyte.
        together = 64 if self.cut == "features" else 1
        for first in range(0, len(spans), together):
            some = spans[first : first + together]
            found = [self._found(span) if self.adopted else None for span in some]
            places = [known or self.address(span) for known, span in zip(found, some, strict=True)]
            yield from self._waiting(partial(self.store.read_many, places))

    def _found(self, span: Span) -> Address | None:
        """Return where the whole activation is; None if it is not there."""
        for fingerprint in (self.fingerprint, *self.adopted):
            address = self.address(span, fingerprint)
            if self.store.contains(address):
                return address
        return None

    def _waiting(self, read: Callable[[], T]) -> T:
        """Return what is read, when the store answers."""
        began, waits = time.monotonic(), False
        while True:
            try:
                return read()
            except StoreUnreachable as error:
                if time.monotonic() - began + PAUSE_S > self.patience_s:
                    if not waits:
                        raise
                    raise StoreUnreachable(
                        f"{error}, for {self.patience_s / 60:.0f} minutes now; what was saved "
                        "before is safe: training goes on with --resume when it answers again"
                    ) from error
                if not waits:
                    minutes = f"{self.patience_s / 60:.0f} minutes at most"
                    tqdm.write(f"warning: {error}; waiting for it, {minutes}")
                waits = True
            time.sleep(PAUSE_S)


def known_fingerprints(store: Store) -> dict[str, FingerprintInfo]:
    """Return the fingerprints that a store knows; none if it does not answer."""
    try:
        return store.fingerprints
    except StoreUnreachable:
        return {}


def adopted(store: Store, fingerprint: str) -> tuple[str, ...]:
    """Return the fingerprints whose activations were found to be this one's, the latest first."""
    infos = reversed(known_fingerprints(store).values())
    return tuple(i.fingerprint for i in infos if fingerprint in i.about.get(ADOPTED_AS, ()))


Places = dict[Cut, Cached]
"""Where the activations of one backbone are, by cut, for its weights at one moment."""


def missing(places: Places, span: Span, cuts: Iterable[Cut]) -> list[Cut]:
    """Return which of the cuts are not stored for a span, in the order of a pass."""
    absent = {cut for cut in cuts if not places[cut].contains(span)}
    return [cut for cut in places if cut in absent]


def deepest(places: Places, span: Span, cut: Cut) -> Cut | None:
    """Return the last cut before `cut` whose activation is stored; None for pixels."""
    found = None
    for earlier, place in places.items():
        if earlier == cut:
            break
        known = place.fingerprint in known_fingerprints(place.store) or place.adopted
        if known and place.contains(span):
            found = earlier
    return found
