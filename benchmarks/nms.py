"""Measure suppression: CPU time of one video, by number of candidates, classes and method.

    python -m benchmarks.nms
    python -m benchmarks.nms --before ../palindrome-before  # another checkout, in turns

Candidates are as a detector's: around some actions of few classes, and everywhere with low scores.
Times are CPU time, so that other programs of the machine count little: medians of passes. What the
first call of a program costs beside is printed below the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {  # candidates, classes, settings
    "2,000 of 20 classes": (2_000, 20, {}),
    "6,000 of 20 classes": (6_000, 20, {}),
    "20,000 of 20 classes": (20_000, 20, {}),
    "40,000 of 20 classes": (40_000, 20, {}),
    "80,000 of 20 classes": (80_000, 20, {}),
    "6,000, all with all": (6_000, 20, {"multiclass": False}),
    "40,000, all with all": (40_000, 20, {"multiclass": False}),
    "6,000, hard": (6_000, 20, {"method": "hard"}),
    "6,000, with votes": (6_000, 20, {"multiclass": False, "voting_threshold": 0.7}),
}
LENGTH_S, ACTIONS = 240.0, 15
FIRST = "first call of a program"


def candidates(
    count: int, classes: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return segments [count, 2], scores [count] and labels [count]: half near actions."""
    rng = np.random.default_rng(seed)
    begin, length = rng.uniform(0, LENGTH_S, ACTIONS), rng.gamma(2.0, 3.0, ACTIONS)
    action = rng.integers(ACTIONS, size=count)
    near = rng.random(count) < 0.5
    start = np.where(near, rng.normal(begin[action], 1), rng.uniform(0, LENGTH_S, count))
    long = np.where(near, length[action] * rng.lognormal(0, 0.3, count), rng.gamma(2, 3, count))
    scores = np.where(near, rng.beta(1, 3, count), rng.beta(0.5, 20, count))
    labels = np.where(near, action % min(classes, 3), rng.integers(classes, size=count))
    segments = np.stack([start, start + long], 1).astype(np.float32)
    return segments, scores.astype(np.float32), labels


def measure(passes: int) -> dict[str, float]:
    """Return milliseconds of CPU by case, and of the first call."""
    from evaluate.nms import NmsConfig, suppress

    began = time.process_time()
    suppress(*candidates(10, 2), NmsConfig())
    found = {FIRST: 1000 * (time.process_time() - began)}
    for name, (count, classes, options) in CASES.items():
        video, config = candidates(count, classes), NmsConfig(**options)
        times = []
        for _ in range(passes):
            began = time.process_time()
            suppress(*video, config)
            times.append(1000 * (time.process_time() - began))
        found[name] = statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--turns", type=int, default=3, help="of the two checkouts")
    parser.add_argument("--one", action="store_true", help="print JSON of one checkout")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.passes)))
        return
    homes = {"before": args.before, "now": REPOSITORY} if args.before else {"now": REPOSITORY}
    turns: dict[str, list[dict[str, float]]] = {label: [] for label in homes}
    for _ in range(args.turns):
        for label, home in homes.items():
            paths = [str(home.resolve()), os.environ.get("PYTHONPATH", "")]
            done = subprocess.run(
                [sys.executable, __file__, "--one", f"--passes={args.passes}"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdout=subprocess.PIPE,
                check=True,
            )
            turns[label].append(json.loads(done.stdout))
    print("| candidates | " + " | ".join(f"{label}, ms" for label in homes) + " | times |")
    print("|---" * (len(homes) + 2) + "|")
    for name in CASES:
        each = [statistics.median(turn[name] for turn in turns[label]) for label in homes]
        print(f"| {name} | {' | '.join(f'{x:.2f}' for x in each)} | {each[0] / each[-1]:.1f} |")
    for label, rows in turns.items():
        print(f"{FIRST}, {label}: {statistics.median(row[FIRST] for row in rows):.0f} ms")


if __name__ == "__main__":
    main()
