"""Print our side of a comparison as JSON: time, processor time, peak memory and what came out.

    python -m benchmarks.compare step [--precision bf16] [--recompute full]
    python -m benchmarks.compare nms --against COMMIT

    step       a training step of VideoMAE-S with adapters, one window of 192 frames, 160 px
    backbone   its features of such a window
    head       an update of the head: 2 windows of 768 steps
    nms        suppression of a video's candidates, of several numbers and in several ways
    map        the mAP of 42,000 predictions over 210 videos
    data       a training window, from an H.264 file to the network's input
    video      detection in a file by the demo's network
    demo       two epochs of the demo's training, with start and validation
    start      from the command to the demo's first training step
    detection  from the command to the segments of a new file

With --against, two commits of ours take turns in one run: the one that is checked out here, with
what is not committed, and the other in a worktree of its own. Each turn is a process; one turn of
each goes before and does not count. Numbers are medians over turns of medians over repeats, CPU
seconds are those of all threads and, for the last three, of all processes; memory is the first
process's alone. What others publish can be laid beside them (docs/measured.md).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cases import CASES, HOME, add_options, at_least_one

WORKER = HOME / "benchmarks/cases.py"
NUMBERS = ("seconds", "cpu_s", "peak_bytes")
OF_FILES = ("data", "video", "detection")
OF_THE_DEMO = ("demo", "start")
FRAMES_OF_FILE = 2000


def run_case(home: Path, case: str, options: list[str]) -> dict[str, Any]:
    """Return one measurement of the code in a folder, in a process of its own."""
    # Without -P this folder would come first, and hide the standard library's modules.
    command = [sys.executable, "-P", str(WORKER), case, *options]
    environment = os.environ | {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {case} of {home} ended with code {done.returncode}; see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary folder."""
    with TemporaryDirectory() as folder:
        home = Path(folder) / "against"
        git("worktree", "add", "--quiet", "--detach", str(home), commit)
        try:
            yield home
        finally:
            git("worktree", "remove", "--force", str(home))


def git(*arguments: str) -> str:
    """Return what a git command prints about this repository."""
    done = subprocess.run(["git", *arguments], cwd=HOME, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def describe_checkout() -> str:
    """Return the commit that is checked out, and whether files differ from it."""
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")
    except (OSError, SystemExit):  # a copy without git
        return "unknown"


def describe_machine() -> dict[str, Any]:
    """Return what numbers depend on beside the code."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def summarise(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of all turns, the least and most processor time, and the last result."""
    medians = {name: statistics.median(turn[name] for turn in turns) for name in NUMBERS}
    busy = [turn["cpu_s"] for turn in turns]
    return medians | {"cpu_s_range": [min(busy), max(busy)], "result": turns[-1]["result"]}


def compare(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the first side takes of the second, by number; empty where there is no other."""
    if len(sides) < 2:
        return {}
    ours, other = sides.values()
    return {name: ours[name] / other[name] for name in NUMBERS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--against", metavar="COMMIT", help="of ours, to take turns with")
    parser.add_argument("--turns", type=at_least_one, default=3)
    parser.add_argument("--out", type=Path, help="a file for the JSON, too")
    add_options(parser)
    args = parser.parse_args()
    for name in ("annotations", "video"):
        file = getattr(args, name)
        if file is not None and not file.exists():
            parser.error(f"--{name}: there is no {file}")
    if args.case in OF_THE_DEMO and not (args.data / "annotations.json").is_file():
        sys.exit(f"error: no demo data in {args.data}; python extract/demo.py --out data/demo")
    with TemporaryDirectory() as scratch, worktrees(args.against) as homes:
        # What is remembered of files is this run's own, so that both sides begin alike.
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        if args.case in OF_FILES and args.video is None:
            from benchmarks.decode import write_synthetic

            args.video = write_synthetic(Path(scratch, "synthetic.mp4"), FRAMES_OF_FILE)
        options = {name: options_of(args, home) for name, home in homes.items()}
        if args.case == "detection" and args.checkpoint is None:
            for number, (name, home) in enumerate(homes.items()):
                options[name].append(f"--checkpoint={Path(scratch, f'{number}.pt')}")
                run_case(home, "checkpoint", options[name])
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in homes}
        for number in range(args.turns + 1):
            for name, home in homes.items():
                found = run_case(home, args.case, options[name])
                if number:
                    turns[name].append(found)
    sides = {name: summarise(each) for name, each in turns.items()}
    report = {"case": args.case, **describe_machine(), "turns": args.turns, "commits": sides}
    text = json.dumps(report | {"ratio": compare(sides)}, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


@contextmanager
def worktrees(against: str | None) -> Iterator[dict[str, Path]]:
    """Yield the folders whose code is measured, by the name of the commit."""
    if against is None:
        yield {describe_checkout(): HOME}
        return
    with worktree(against) as other:
        name = git("rev-parse", "--short", against)
        yield {describe_checkout(): HOME, f"{name}, against": other}


def options_of(args: argparse.Namespace, home: Path) -> list[str]:
    """Return the options of a case as its process takes them, for the code in a folder."""
    names = argparse.ArgumentParser(add_help=False)
    add_options(names)
    options = []
    for action in names._actions:
        value = getattr(args, action.dest)
        if isinstance(value, bool):
            options += [f"--{action.dest}"] if value and home == HOME else []
        elif value is not None:
            path = value.resolve() if isinstance(value, Path) else value
            options.append(f"--{action.dest}={path}")
    return options


if __name__ == "__main__":
    main()
