"""Activations of an earlier description: how it differs, and whether the numbers are equal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache.address import FingerprintInfo
from cache.dtypes import Dtype
from cache.store import Store
from extract.activations.activations import Activations
from extract.activations.fingerprints import NOT_HASHED, Description
from extract.activations.stored import ADOPTED_AS, Cached
from extract.sampling.spans import Span

TOLERANCE: dict[Dtype, float] = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""By how much a row may differ, over its norm: other batch shapes round differently (1e-5), and a
number that lies between two of a narrow dtype may become either."""


def differences(old: Description, new: Description) -> list[str]:
    """Return in what two descriptions differ, a line for each thing.

    Args:
        new: may lack what is not known; that is not compared.
    """
    if "code" not in old:
        return ["it was stored before the code was part of the fingerprint"]
    ours, theirs = _flat(new), _flat(old)
    lines = [
        f"{name} was {theirs.get(name)}, is {ours[name]}"
        for name in ours
        if ours[name] != theirs.get(name) and name not in ("code", "structure", "weights")
    ]
    modules = [
        f"{module} computes otherwise" for module in _changed(old["modules"], new["modules"])
    ]
    if "structure" not in new:
        lines += modules
    elif (old["code"], old["structure"]) != (new["code"], new["structure"]):
        lines += modules or ["modules of the network, or their attributes, differ"]
    if "weights" in new and old["weights"] != new["weights"]:
        lines.append("the weights differ")
    return lines


def _changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the modules of code that differ; one that has another name now does not."""
    same = {*before.values()} & {*now.values()}
    return sorted({m for modules in (before, now) for m, d in modules.items() if d not in same})


def _flat(description: Description, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in description.items():
        if isinstance(value, dict) and name not in NOT_HASHED:
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in NOT_HASHED:
            # As it comes back from a file.
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


@dataclass(frozen=True)
class Comparison:
    """Stored activations beside the same ones as they are computed now.

    Args:
        group: dtype, direction and kind of span.
        spans: how many were compared; `equal`: how many of them are equal bit for bit.
        furthest: the largest difference of a row over its norm.
        tolerance: what it may be.
    """

    group: str
    spans: int
    equal: int
    furthest: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Return whether all of them are close enough."""
        return self.furthest <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.group}: {self.equal} of {self.spans} spans are equal bit for bit, the furthest "
            f"row differs by {self.furthest:.2g} of its norm (tolerance {self.tolerance:g})"
        )


def compare(group: str, old: Cached, new: Activations, spans: Sequence[Span]) -> Comparison:
    """Compute spans again and compare them with what is stored.

    Args:
        new: as the present code gives them, of an empty store.
    """
    equal, furthest = 0, 0.0
    for span in spans:
        stored, computed = old.read(span), new.get(span, old.cut)
        if stored.shape != computed.shape:
            furthest = float("inf")
            continue
        equal += torch.equal(stored, computed)
        furthest = max(furthest, _furthest_row(stored, computed))
    return Comparison(group, len(spans), equal, furthest, TOLERANCE[old.dtype])


def _furthest_row(stored: Tensor, computed: Tensor) -> float:
    """Return the largest difference of a row [C] over its norm; infinite where one is NaN."""
    before, now = stored.double(), computed.double()
    norms = before.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((now - before).norm(dim=-1) / norms).nan_to_num(float("inf")).max())


def sample(spans: Sequence[Span], count: int) -> Iterator[Span]:
    """Yield some of the spans, spread evenly; of whole videos the shortest ones."""
    if spans and spans[0].kind == "video":
        yield from sorted(spans, key=lambda span: span.rows)[:count]
        return
    for number in range(min(count, len(spans))):
        yield spans[number * len(spans) // min(count, len(spans))]


def adopt(store: Store, old: FingerprintInfo, fingerprint: str) -> None:
    """Let what is stored under one fingerprint be found under another, too.

    It stands in the description of the old one, which stays as long as its activations do.
    """
    known = old.about.get(ADOPTED_AS, [])
    about = old.about | {ADOPTED_AS: [*known, fingerprint]}
    with store.writer() as writer:
        writer.describe(replace(old, about=about))
    store.refresh()
