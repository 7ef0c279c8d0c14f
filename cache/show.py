"""Show what is in a cache of activations, check it, and free what nobody needs.

    python cache/show.py STORE [--verify] [--prune] [--budget GB]
    python cache/show.py STORE --adopt FINGERPRINT [--checkpoint FILE] [--config FILE] [--a.setting]

The table says of every entry whether it is true, stale (its checkpoint has other weights now),
outdated (the code, a library or a flag has changed) or unknown, and below it why. --verify reads
every checksum and ends with code 1 if a file is not as it was written. --prune frees what is stale,
what --verify found damaged, and with --budget what is oldest beyond so many GB; never what a
running process uses. What is outdated stays: other checkouts may use it. --adopt computes some of
an outdated entry's spans again; if the numbers are equal, all of the entry is read again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from configs import cli
from configs.messages import format_bytes, pad_columns
from configs.options import ScriptParser
from train.config import Experiment

if TYPE_CHECKING:
    from cache.format.index import Summary
    from cache.store import Store
    from cache.upkeep.verify import Problem
    from train.cache_entries.verdicts import Verdict

HEADER = ("cut", "fingerprint", "dtype", "direction", "span", "spans", "size", "age", "weights")


def main() -> None:
    parser = ScriptParser(__doc__, Experiment)
    parser.add_argument("store", help="folder or URL")
    parser.add_argument("--verify", action="store_true", help="read every checksum")
    parser.add_argument("--prune", action="store_true", help="free what is stale or damaged")
    parser.add_argument("--budget", type=float, metavar="GB", help="free the oldest beyond this")
    parser.add_argument("--adopt", metavar="FINGERPRINT", help="read outdated entries again")
    parser.add_argument("--checkpoint", help="of the entry to adopt; default: where it came from")
    parser.add_argument("--config", help="YAML file of its experiment; default: the checkpoint's")
    args, overrides = parser.parse()
    if args.adopt:
        from train.cache_entries.adoption import adopt_entry

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
    from cache.store import Store
    from cache.upkeep.prune import prune
    from cache.upkeep.verify import verify
    from train.cache_entries.verdicts import judge_entries

    with Store.open(url, "a" if prunes else "r") as store:
        verdicts = judge_entries(store.fingerprints)
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
                f"freed {format_bytes(done.freed_bytes)}: {done.dropped:,} spans stale or over the "
                f"budget, {done.damaged:,} damaged, {done.duplicates:,} twice, "
                f"{done.leftovers:,} leftovers of killed processes; "
                f"{format_bytes(done.kept_bytes)} stay"
            )
            if done.repaired:
                print(f"{done.repaired:,} lists of a part's files are rewritten")
            if done.in_use or done.active_parts:
                print(
                    f"in use, so they stayed: {len(done.in_use)} fingerprints and "
                    f"{done.active_parts} parts that are being written"
                )
    return problems


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
                format_bytes(summary.bytes),
                str(timedelta(seconds=round(max(0.0, time.time() - summary.newest_s)))),
                "?"
                if info is None
                else f"{verdicts[info.fingerprint].state}: "
                f"{' and '.join(info.checkpoint.splitlines())}",
            )
        )
    lines = ["  ".join(row).rstrip() for row in pad_columns(rows)]
    videos = f"{len(store.videos):,} videos, {format_bytes(store.bytes)} in {store.url}"
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
