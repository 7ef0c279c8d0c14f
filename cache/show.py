"""Show what is in a cache of activations, check it, and free what nobody needs.

    python cache/show.py STORE [--verify] [--prune] [--budget GB]
    python cache/show.py STORE --adopt FINGERPRINT [--checkpoint FILE] [--config FILE] [--a.setting]

The table says of every entry whether it is true, stale (its checkpoint has other weights now),
outdated (the code, a library or a flag is another one) or unknown, and below it why. --verify reads
every checksum and ends with code 1 if a file is not as it was written. --prune frees what is stale,
what --verify found damaged, and with --budget what is oldest beyond so many GB; never what a
running process uses. What is outdated stays: other checkouts may use it. --adopt computes some of
an outdated entry's spans anew; if the numbers are equal, all of the entry is read again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, cast

from cache.address import Dtype, FingerprintInfo
from cache.format.index import Summary
from cache.store import Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import Problem, verify
from configs import cli
from configs.messages import pad_columns
from extract.activations.activations import Activations
from extract.activations.adoption import adopt, compare, differences, sample
from extract.activations.fingerprints import (
    SETTINGS,
    Description,
    describe,
    empty_description,
    fingerprint,
    legacy_fingerprints,
    settings,
)
from extract.activations.stored import ADOPTED_AS, Cached
from extract.backbone.backbone import Cut
from extract.backbone.imported import AnyBackbone
from extract.sampling.spans import Span, SpanKind
from extract.sampling.windows import Direction
from train.config import Experiment
from train.data.cached import evaluation_spans, training_spans
from train.data.videos import VideoItem, load_annotations, load_subsets, target_classes
from train.detector.model import Detector
from train.detector.sources import build_detector, merge_configs, read_sources
from train.engine.checkpoint import is_checkpoint, load_checkpoint
from train.engine.session import inference_accelerator

State = Literal["true", "stale", "outdated", "unknown"]
ADOPTED_SPANS = 8  # computed anew of every dtype, direction and kind of span
HEADER = ("cut", "fingerprint", "dtype", "direction", "span", "spans", "MB", "age", "weights")

Known = dict[tuple[Path, str], list[tuple[AnyBackbone, dict[Cut, Description]]]]
"""Backbones and descriptions by checkpoint and settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("store", help="folder or URL")
    parser.add_argument("--verify", action="store_true", help="read every checksum")
    parser.add_argument("--prune", action="store_true", help="free what is stale or damaged")
    parser.add_argument("--budget", type=float, metavar="GB", help="free the oldest beyond this")
    parser.add_argument("--adopt", metavar="FINGERPRINT", help="read outdated entries again")
    parser.add_argument("--checkpoint", help="of the entry to adopt; default: where it came from")
    parser.add_argument("--config", help="YAML file of its experiment; default: the checkpoint's")
    args, overrides = parser.parse_known_args()
    if args.adopt:
        print(adopt_entry(args.store, args.adopt, args.checkpoint, args.config, overrides))
        return
    if overrides or args.checkpoint or args.config:
        parser.error(f"{' '.join(overrides) or '--checkpoint and --config'}: only with --adopt")
    if args.budget is not None and not (args.prune and args.budget >= 0):
        parser.error("--budget is a number of GB, 0 or more, and goes with --prune")
    problems = show(args.store, args.verify, args.prune, args.budget)
    sys.exit(1 if problems and not args.prune else 0)


def show(url: str, verifies: bool, prunes: bool, budget_gb: float | None) -> list[Problem]:
    """Print what was asked for; return what is damaged."""
    with Store.open(url, "a" if prunes else "r") as store:
        known: Known = {}
        verdicts = {name: _verdict(info, known) for name, info in store.fingerprints.items()}
        print(_table(store, verdicts))
        problems: list[Problem] = []
        if verifies:
            problems = verify(store, progress=sys.stderr.isatty())
            print("\n".join(f"damaged: {file}: {what}" for file, what in problems) or "all is well")
        if prunes:
            keep = None if budget_gb is None else int(budget_gb * 1e9)
            done = prune(
                store,
                lambda info: verdicts[info.fingerprint].state == "stale",
                keep,
                problems,
                progress=sys.stderr.isatty(),
            )
            print(
                f"freed {done.freed_bytes / 1e6:,.1f} MB: {done.dropped:,} spans stale or over the "
                f"budget, {done.damaged:,} damaged, {done.duplicates:,} twice, "
                f"{done.leftovers:,} leftovers of killed processes; "
                f"{done.kept_bytes / 1e6:,.1f} MB stay"
            )
            if done.repaired:
                print(f"{done.repaired:,} lists of a part's files are written anew")
            if done.in_use or done.active_parts:
                print(
                    f"in use, so they stayed: {len(done.in_use)} fingerprints and "
                    f"{done.active_parts} parts that are being written"
                )
    return problems


class Verdict(NamedTuple):
    """Whether an entry is true, and if not, why."""

    state: State
    why: str = ""


def _verdict(info: FingerprintInfo, known: Known) -> Verdict:
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
            if now is not None and _is_found_as(info, now):
                return Verdict("true")
            if now is not None and _has_weights(info, backbone, now):
                outdated = differences(info.about, now)
    if outdated:
        return Verdict("outdated", "; ".join(outdated))
    if all(is_checkpoint(origin, Experiment) for origin in origins):
        return Verdict("stale", f"the weights in {' and '.join(map(str, origins))} are others now")
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


def _is_found_as(info: FingerprintInfo, now: Description) -> bool:
    """Return whether an entry is what is asked for now, by itself or because it was adopted."""
    return fingerprint(now) in (info.fingerprint, *info.about.get(ADOPTED_AS, ()))


def _has_weights(info: FingerprintInfo, backbone: AnyBackbone, now: Description) -> bool:
    """Return whether an entry is of a backbone's weights, whatever the code."""
    if "weights" in info.about:
        return bool(info.about["weights"] == now["weights"])
    return info.fingerprint in legacy_fingerprints(backbone, info.about)


def adopt_entry(
    url: str,
    prefix: str,
    checkpoint: str | None,
    config_file: str | None,
    overrides: Sequence[str],
) -> str:
    """Let an outdated entry be read again if its numbers are those of the present code.

    Args:
        prefix: of its fingerprint.
        checkpoint: None takes the file that it came from.
        config_file: of the experiment; None takes the checkpoint's.

    Returns:
        What was compared.

    Raises:
        ValueError: the numbers or the weights are others, or nothing can be compared.
    """
    with Store.open(url, "a") as store, TemporaryDirectory() as aside:
        info = _entry(store, prefix)
        config, backbones, items = _experiment(store, info, checkpoint, config_file, overrides)
        of = settings(config.backbone, config.pixels, config.training.precision)
        descriptions = [(backbone, describe(backbone, of).get(info.cut)) for backbone in backbones]
        fitting = [(b, d) for b, d in descriptions if d is not None and _has_weights(info, b, d)]
        if not fitting:
            raise ValueError(
                f"--adopt: {info.fingerprint[:12]} is of other weights than these; there is "
                "nothing to adopt, compute its activations with `python extract/run.py`"
            )
        backbone, now = fitting[0]
        if _is_found_as(info, now):
            return f"{info.fingerprint[:12]} is true already"
        found = []
        for dtype, direction, kind in _groups(store, info):
            old = Cached(store, info.cut, info.fingerprint, dtype)
            spans = list(sample(_stored_spans(old, items, config, direction, kind), ADOPTED_SPANS))
            group = f"{dtype}, {direction}, {kind} spans"
            if not spans:
                raise ValueError(
                    f"--adopt: none of the {group} of {info.fingerprint[:12]} is one of the "
                    "experiment's and has its video here, so nothing can be compared"
                )
            cache = replace(config.cache, dtype=dtype)
            with Store.open(Path(aside) / group, "a") as empty:
                new = Activations(
                    empty, backbone, config.pixels, config.training.precision, cache, "adopted"
                )
                found.append(compare(group, old, new, spans))
                new.close()
        lines = "\n  ".join(map(str, found))
        if not all(each.holds for each in found):
            raise ValueError(
                f"--adopt: {info.fingerprint[:12]} has other numbers than the present code gives; "
                f"it is not adopted:\n  {lines}"
            )
        adopt(store, info, fingerprint(now))
        return f"{info.fingerprint[:12]} is read again, as {fingerprint(now)[:12]}:\n  {lines}"


def _entry(store: Store, prefix: str) -> FingerprintInfo:
    found = [info for name, info in store.fingerprints.items() if name.startswith(prefix)]
    if len(found) != 1 or "imported" in found[0].about:
        raise ValueError(
            f"--adopt: {len(found)} fingerprints in {store.url} begin with {prefix!r}; give that "
            "of one entry, as the table shows it (imported features are never outdated)"
        )
    return found[0]


def _experiment(
    store: Store,
    info: FingerprintInfo,
    checkpoint: str | None,
    config_file: str | None,
    overrides: Sequence[str],
) -> tuple[Experiment, list[AnyBackbone], list[VideoItem]]:
    """Return the experiment of an entry, its backbones and its videos."""
    for origin in info.checkpoint.split("\n"):
        if checkpoint is None and config_file is None and origin.endswith((".yaml", ".yml")):
            config_file = origin
        elif checkpoint is None and is_checkpoint(origin, Experiment):
            checkpoint = origin
    if checkpoint is None and config_file is None:
        raise ValueError(f"--adopt: {info.checkpoint} is not here; give --checkpoint or --config")
    sources = read_sources([checkpoint] if checkpoint else [], config_file, overrides)
    config = merge_configs(config_file, sources, overrides)
    accelerator = inference_accelerator(config, cached=True)
    annotations = load_annotations(config.data)
    detector = build_detector(config, target_classes(config.data, annotations), sources)
    data = config.data
    subsets = {data.train_subset, data.validation_subset or data.test_subset, data.test_subset}
    loaded = load_subsets(
        data, annotations, sorted(subsets), accelerator, store, sampling_fps=config.sampling.fps
    )
    streams = detector.to(accelerator.device).eval().streams
    backbones: list[AnyBackbone] = [stream.backbone for stream in streams]
    return config, backbones, [item for items in loaded for item in items]


def _groups(store: Store, info: FingerprintInfo) -> list[tuple[Dtype, Direction, SpanKind]]:
    """Return as what kinds of numbers and spans an entry is stored."""
    found = {
        (summary.dtype, summary.direction, summary.span)
        for summary in store.summaries()
        if summary.fingerprint == info.fingerprint and summary.spans
    }
    return cast(list[tuple[Dtype, Direction, SpanKind]], sorted(found))


def _stored_spans(
    old: Cached,
    items: Sequence[VideoItem],
    config: Experiment,
    direction: Direction,
    kind: SpanKind,
) -> list[Span]:
    """Return the experiment's spans that an entry has and whose videos are here."""
    sampling = config.sampling
    spans = training_spans(items, sampling, direction, kind)
    for overlap in {sampling.test_overlap, sampling.validation_overlap}:
        spans += evaluation_spans(items, overlap, sampling, direction, kind)
    return [span for span in spans if span.path.exists() and old.contains(span)]


def _table(store: Store, verdicts: dict[str, Verdict]) -> str:
    rows = [HEADER]
    depth = {info.fingerprint: info.cut for info in store.fingerprints.values()}

    def order(summary: Summary) -> tuple[float, str, str]:
        cut = depth.get(summary.fingerprint, -1)
        return -summary.newest_s // 60, summary.direction, f"{cut!s:>9}"

    for summary in sorted(store.summaries(), key=order):
        info = store.fingerprints.get(summary.fingerprint)
        unfinished = summary.pieces > summary.spans
        rows.append(
            (
                "?" if info is None else str(info.cut),
                summary.fingerprint[:12],
                summary.dtype,
                summary.direction,
                summary.span,
                f"{summary.spans:,}" + ("+" if unfinished and not summary.spans else ""),
                f"{summary.bytes / 1e6:,.1f}",
                str(timedelta(seconds=round(max(0.0, time.time() - summary.newest_s)))),
                "?"
                if info is None
                else f"{verdicts[info.fingerprint].state}: "
                f"{' and '.join(info.checkpoint.splitlines())}",
            )
        )
    lines = ["  ".join(row).rstrip() for row in pad_columns(rows)]
    videos = f"{len(store.videos):,} videos, {store.bytes / 1e6:,.1f} MB in {store.url}"
    return "\n".join([*lines, videos, *_reasons(verdicts)])


def _reasons(verdicts: dict[str, Verdict]) -> list[str]:
    """Return why entries are not true, a line for each reason."""
    same: dict[Verdict, list[str]] = {}
    for name, verdict in verdicts.items():
        if verdict.why:
            same.setdefault(verdict, []).append(name[:12])
    lines = [f"why {', '.join(names)}: {verdict.why}" for verdict, names in same.items()]
    if any(verdict.state == "outdated" for verdict in same):
        lines.append("if the numbers are equal all the same, --adopt FINGERPRINT keeps an entry")
    return lines


if __name__ == "__main__":
    cli.run(main)
