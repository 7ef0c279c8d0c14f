"""Whether the entries of a cache are what their checkpoints give with the present code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from cache.address import FingerprintInfo
from extract.activations.adoption import differences
from extract.activations.fingerprints import (
    SETTINGS,
    Description,
    describe,
    empty_description,
    fingerprint,
    legacy_fingerprints,
)
from extract.activations.stored import ADOPTED_AS
from extract.backbone.imported import AnyBackbone
from extract.settings.backbone import Cut
from train.config import Experiment
from train.detector.model import Detector
from train.engine.checkpoint import is_checkpoint, load_checkpoint

State = Literal["true", "stale", "outdated", "unknown"]
Known = dict[tuple[Path, str], list[tuple[AnyBackbone, dict[Cut, Description]]]]
"""Backbones and descriptions by checkpoint and settings."""


class Verdict(NamedTuple):
    """Whether an entry is true, and if not, why."""

    state: State
    why: str = ""


def judge_entries(entries: Mapping[str, FingerprintInfo]) -> dict[str, Verdict]:
    """Return the verdict on every entry, by fingerprint."""
    known: Known = {}
    return {name: _judge(info, known) for name, info in entries.items()}


def _judge(info: FingerprintInfo, known: Known) -> Verdict:
    """Return whether an entry is what its checkpoint gives with the present code.

    Args:
        known: what was found out of checkpoints before; it is added to.
    """
    origins = [Path(line) for line in info.checkpoint.split("\n")]
    if "imported" in info.about:
        return Verdict("unknown")
    outdated: list[str] = []
    # A run's features of its best epoch are told to be from last.pt, as it then was.
    for path in (p for origin in origins for p in (origin, origin.with_name("best.pt"))):
        for backbone, descriptions in _described(path, info, known):
            now = descriptions.get(info.cut)
            if now is not None and is_found_as(info, now):
                return Verdict("true")
            if now is not None and has_weights(info, backbone, now):
                outdated = differences(info.about, now)
    if outdated:
        return Verdict("outdated", "; ".join(outdated))
    if all(is_checkpoint(origin, Experiment) for origin in origins):
        return Verdict("stale", f"the weights in {' and '.join(map(str, origins))} have changed")
    # Gone, or of a kind that cannot be asked (a config's pretrained backbone): it may be only
    # elsewhere, and what was computed from it stays true. The code can be compared all the same.
    now = empty_description(info.about)
    lines = differences(info.about, now) if now is not None else []
    return Verdict("outdated", "; ".join(lines)) if lines else Verdict("unknown")


def _described(
    path: Path, info: FingerprintInfo, known: Known
) -> list[tuple[AnyBackbone, dict[Cut, Description]]]:
    """Return a checkpoint's backbones and what their activations depend on now, by cut.

    With the entry's settings; nothing if the file is gone or something else.
    """
    of = {name: info.about[name] for name in SETTINGS if name in info.about}
    # Old entries name it only where it is false.
    of["pixels"] = {"antialias": True, **of.get("pixels", {})}
    key = path, json.dumps(of, sort_keys=True)
    if key not in known:
        known[key] = []
        if is_checkpoint(path, Experiment):
            saved = load_checkpoint(path, Experiment)
            streams = Detector.restore(saved, path).streams
            known[key] = [(stream.backbone, describe(stream.backbone, of)) for stream in streams]
    return known[key]


def is_found_as(info: FingerprintInfo, now: Description) -> bool:
    """Return whether an entry is what is asked for now, by itself or because it was adopted."""
    return fingerprint(now) in (info.fingerprint, *info.about.get(ADOPTED_AS, ()))


def has_weights(info: FingerprintInfo, backbone: AnyBackbone, now: Description) -> bool:
    """Return whether an entry is of a backbone's weights, whatever the code."""
    if "weights" in info.about:
        return bool(info.about["weights"] == now["weights"])
    return info.fingerprint in legacy_fingerprints(backbone, info.about)
