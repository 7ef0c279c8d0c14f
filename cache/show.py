"""Show what is in a cache of activations, check it, and free what nobody needs.

    python cache/show.py STORE [--verify] [--prune] [--budget GB]

--verify reads every checksum and ends with code 1 if a file is not as it was written. --prune frees
what is stale (its checkpoint has other weights now), what --verify found damaged, and with --budget
what is oldest beyond so many GB; never what a running process uses.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal

from cache.address import FingerprintInfo
from cache.format.index import Summary
from cache.store import Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import Problem, verify
from configs import cli
from configs.messages import pad_columns
from extract.activations.fingerprints import fingerprints
from train.config import Experiment
from train.detector.model import Detector
from train.engine.checkpoint import is_checkpoint, load_checkpoint

State = Literal["true", "stale", "unknown"]
HEADER = ("cut", "fingerprint", "dtype", "direction", "span", "spans", "MB", "age", "weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("store", help="folder or URL")
    parser.add_argument("--verify", action="store_true", help="read every checksum")
    parser.add_argument("--prune", action="store_true", help="free what is stale or damaged")
    parser.add_argument("--budget", type=float, metavar="GB", help="free the oldest beyond this")
    args = parser.parse_args()
    if args.budget is not None and not (args.prune and args.budget >= 0):
        parser.error("--budget is a number of GB, 0 or more, and goes with --prune")
    problems = show(args.store, args.verify, args.prune, args.budget)
    sys.exit(1 if problems and not args.prune else 0)


def show(url: str, verifies: bool, prunes: bool, budget_gb: float | None) -> list[Problem]:
    """Print what was asked for; return what is damaged."""
    with Store.open(url, "a" if prunes else "r") as store:
        state_of = _states(store)
        print(_table(store, state_of))
        problems: list[Problem] = []
        if verifies:
            problems = verify(store, progress=sys.stderr.isatty())
            print("\n".join(f"damaged: {file}: {what}" for file, what in problems) or "all is well")
        if prunes:
            keep = None if budget_gb is None else int(budget_gb * 1e9)
            done = prune(
                store,
                lambda info: state_of(info) == "stale",
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


def _states(store: Store) -> Callable[[FingerprintInfo], State]:
    """Return what says whether a fingerprint's checkpoint still has the weights that it names."""
    now: dict[tuple[Path, str], set[str]] = {}

    def state(info: FingerprintInfo) -> State:
        origins = [Path(line) for line in info.checkpoint.split("\n")]
        # A run's features of its best epoch are told to be from last.pt, as it then was.
        for path in (p for origin in origins for p in (origin, origin.with_name("best.pt"))):
            key = path, json.dumps(info.about, sort_keys=True)
            if key not in now:
                now[key] = _fingerprints_now(path, info)
            if info.fingerprint in now[key]:
                return "true"
        # Gone, or of a kind that cannot be asked (a config's pretrained backbone): it may be only
        # elsewhere, and what was computed from it stays true.
        return (
            "stale" if all(is_checkpoint(origin, Experiment) for origin in origins) else "unknown"
        )

    return state


def _fingerprints_now(path: Path, info: FingerprintInfo) -> set[str]:
    if not is_checkpoint(path, Experiment):
        return set()
    saved = load_checkpoint(path, Experiment)
    streams = Detector.restore(saved, path).streams
    return {name for s in streams for name in fingerprints(s.backbone, info.about).values()}


def _table(store: Store, state_of: Callable[[FingerprintInfo], State]) -> str:
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
                else f"{state_of(info)}: {' and '.join(info.checkpoint.splitlines())}",
            )
        )
    lines = ["  ".join(row).rstrip() for row in pad_columns(rows)]
    videos = f"{len(store.videos):,} videos, {store.bytes / 1e6:,.1f} MB in {store.url}"
    return "\n".join([*lines, videos])


if __name__ == "__main__":
    cli.run(main)
