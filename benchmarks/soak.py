"""Train for long while video files go bad: memory stays flat, no worker is lost, results hold.

    python -m benchmarks.soak --minutes 30 --out runs/soak
    python -m benchmarks.soak --minutes 3 --every 10 --out runs/short    # to see it work

Two trainings of the demo run side by side from the same seed, on two cores. `undisturbed` reads
whole videos; in the folder of `disturbed` a random training video goes bad every minute, each time
in another way, and is whole again half a minute later. Memory is measured while both loaders'
workers live, which is from the first validation on. Writes soak.json and memory.png into OUT; exits
with 1 if a check fails.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
import psutil

from configs.atomic import write_text
from evaluate.reports.metrics_file import METRICS, read_metrics
from extract.demo import DemoConfig, write_dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REPOSITORY = Path(__file__).resolve().parent.parent
EPOCHS_PER_MINUTE = 7.0  # of 10 steps, two runs at once on two cores
SAMPLE_S = 5.0
ROLES = ("trainer", "training worker", "validation worker")  # a run's processes, as they start
ENDING = 2  # last samples of a run, in which its processes may end
MOST_GROWTH = 0.05
MOST_APART = 0.03  # average mAP
NOTICED = re.compile(r"warning: (.*); another video is trained on in its place")

Memory = dict[int, float]  # megabytes of a run's processes, by pid, its trainer first


def without_pictures() -> bytes:
    """Return an mp4 file with a second of silence and no video stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def zero_middle(content: bytes) -> bytes:
    """Return the content with zeros in its middle; both ends still decode."""
    begin, end = len(content) * 4 // 10, len(content) * 7 // 10
    return content[:begin] + bytes(end - begin) + content[end:]


# Each makes a bad file at a free path, from the content of a good one.
SPOILERS: dict[str, Callable[[Path, bytes], object]] = {
    "deleted": lambda path, content: None,
    "emptied": lambda path, content: path.touch(),
    "cut in half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "hollow": lambda path, content: path.write_bytes(zero_middle(content)),
    "random bytes": lambda path, content: path.write_bytes(os.urandom(len(content))),
    "a folder": lambda path, content: path.mkdir(),
    "no video stream": lambda path, content: path.write_bytes(without_pictures()),
    "a named pipe": lambda path, content: os.mkfifo(path),
}


@contextmanager
def spoilt(video: Path, kind: str, aside: Path) -> Iterator[None]:
    """Replace a video by a bad file during the context; `aside` holds the good one meanwhile."""
    whole, bad = aside / video.name, aside / f"bad-{video.name}"
    SPOILERS[kind](bad, video.read_bytes())
    os.replace(video, whole)  # a folder cannot take a file's place at once
    if bad.exists():
        os.replace(bad, video)
    try:
        yield
    finally:
        if video.exists():
            os.replace(video, bad)
        os.replace(whole, video)
        shutil.rmtree(bad) if bad.is_dir() else bad.unlink(missing_ok=True)


def disturb(videos: Path, aside: Path, every_s: float) -> Iterator[dict[str, Any] | None]:
    """Spoil and restore one video after another; yield the one spoilt just now, else None.

    The caller must ask often for the next value.

    An unannotated bad file of the same kind stays in the folder each time.
    """
    rng = random.Random(0)
    names = sorted(videos.glob("training_*.mp4"))
    content = names[0].read_bytes()
    for number in range(sys.maxsize):
        kind = list(SPOILERS)[number % len(SPOILERS)]
        video = rng.choice(names)
        SPOILERS[kind](videos / f"stranger_{number:03d}.mp4", content)
        due = time.monotonic() + every_s
        with spoilt(video, kind, aside):
            yield {"video": video.stem, "kind": kind}
            while time.monotonic() < due - every_s / 2:
                yield None
        while time.monotonic() < due:
            yield None


def start_training(folder: Path, videos: Path, epochs: int) -> "subprocess.Popen[bytes]":
    """Start the real script on a folder of videos; it writes into `folder`/run."""
    validate_every = str(max(1, epochs // 20))
    settings = {
        "out": folder / "run",
        "data.annotations": folder.parent / "data/annotations.json",
        "data.classes": folder.parent / "data/classes.txt",
        "data.videos": videos,
        "data.bad_videos": "skip",
        "training.epochs": epochs,
        "training.stop_epoch": epochs,
        "training.warmup_epochs": epochs // 20,
        "training.validate_every": validate_every,
        "training.validate_from": validate_every,
        "training.workers": 1,
    }
    command = [sys.executable, "train/e2e.py", "--config", "configs/e2e/demo/forward.yaml"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    alone = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    alone |= {"XDG_CACHE_HOME": str(folder.parent / "cache")}
    with (folder / "log.txt").open("wb") as log, (folder / "progress.txt").open("wb") as progress:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | alone, stdout=log, stderr=progress
        )


def memory_of_run(pid: int) -> Memory:
    """Return the resident memory of a training process and its loaders' workers."""
    trainer, found = psutil.Process(pid), Memory()
    for process in [trainer, *trainer.children()]:
        with suppress(psutil.Error):  # it may end meanwhile
            if process == trainer or "spawn_main" in " ".join(process.cmdline()):
                found[process.pid] = process.memory_info().rss / 1e6
    return {pid: megabytes for pid, megabytes in found.items() if megabytes}


def lost_processes(samples: list[Memory]) -> list[int]:
    """Return the processes that disappeared before the end of the run."""
    seen, gone = set[int](), set[int]()
    for sample in samples[:-ENDING]:
        seen |= sample.keys()
        gone |= seen - sample.keys()
    return sorted(gone)


def memory_growth(samples: list[Memory]) -> dict[str, tuple[float, float]]:
    """Return per process its memory at the beginning and the end, in MB: medians over a fifth."""
    whole = [list(sample.values()) for sample in samples if len(sample) == len(ROLES)]
    fifth = max(1, len(whole) // 5)
    return {
        name: (statistics.median(values[:fifth]), statistics.median(values[-fifth:]))
        for name, values in zip(ROLES, zip(*whole, strict=True), strict=False)
    }


def summarise_run(folder: Path, code: int | None, samples: list[Memory]) -> dict[str, Any]:
    """Return the outcome of one run."""
    file = folder / "run" / METRICS
    lines = read_metrics(file) if file.exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-max(1, len(losses) // 10) :]
    pids = list(dict.fromkeys(pid for sample in samples for pid in sample))
    return {
        "exit_code": code,
        "steps": max((line["step"] for line in lines), default=0),
        "bad_files_noticed": NOTICED.findall((folder / "log.txt").read_text()),
        "workers": pids[1:],
        "lost": lost_processes(samples),
        "memory_mb": memory_growth(samples),
        "final_loss": statistics.mean(last) if last else None,
        "validation": [x["validation"]["average_mAP"] for x in lines if "validation" in x],
    }


def find_faults(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Return the checks that failed, in words."""
    found = []
    for name, run in runs.items():
        if run["exit_code"] != 0:
            found.append(f"{name}: ended with {run['exit_code']}; see progress.txt in its folder")
        if run["lost"] or len(run["workers"]) != len(ROLES) - 1:
            found.append(
                f"{name}: {len(ROLES) - 1} workers expected; {run['workers']}, {run['lost']} lost"
            )
        for process, (first, last) in run["memory_mb"].items():
            if last > first * (1 + MOST_GROWTH):
                found.append(f"{name}: {process} grew from {first:.0f} to {last:.0f} MB")
    if not runs["disturbed"]["bad_files_noticed"]:
        found.append("disturbed: met no bad file, so nothing is proved")
    ends = [run["validation"][-1:] for run in runs.values()]
    if not all(ends) or abs(ends[0][0] - ends[1][0]) > MOST_APART:
        found.append(f"final average mAPs differ by more than {MOST_APART}: {ends}")
    return found


def runs_table(runs: dict[str, dict[str, Any]]) -> str:
    """Return the runs side by side, in Markdown."""

    def grown(run: dict[str, Any], process: str) -> str:
        first, last = run["memory_mb"].get(process, (float("nan"),) * 2)
        return f"{first:.0f} → {last:.0f} ({last - first:+.0f})"

    rows: dict[str, Callable[[dict[str, Any]], object]] = {
        "exit code": lambda run: run["exit_code"],
        "steps": lambda run: run["steps"],
        "different bad files noticed": lambda run: len(run["bad_files_noticed"]),
        "workers (lost)": lambda run: f"{run['workers']} ({len(run['lost'])})",
        "trainer, MB": lambda run: grown(run, "trainer"),
        "training worker, MB": lambda run: grown(run, "training worker"),
        "validation worker, MB": lambda run: grown(run, "validation worker"),
        "loss, mean of the last tenth": lambda run: "{:.4f}".format(
            run["final_loss"] or float("nan")
        ),
        "validation mAPs": lambda run: ", ".join(f"{x:.3f}" for x in run["validation"]),
    }
    lines = [f"| | {' | '.join(runs)} |", "|---" * (1 + len(runs)) + "|"]
    lines += [
        f"| {row} | {' | '.join(str(of(r)) for r in runs.values())} |" for row, of in rows.items()
    ]
    return "\n".join(lines)


def draw_memory(
    times: list[float], samples: dict[str, list[Memory]], events: list[dict[str, Any]], path: Path
) -> None:
    """Draw the memory of all processes over minutes, with a line where a file went bad."""
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for event in events:
        axes.axvline(event["seconds"] / 60, color="0.85", linewidth=0.8)
    for name, of_run in samples.items():
        pids = dict.fromkeys(pid for sample in of_run for pid in sample)
        for role, pid in zip(ROLES, pids, strict=False):
            values = [sample.get(pid, np.nan) for sample in of_run]
            axes.plot([t / 60 for t in times[: len(values)]], values, label=f"{name}: {role}")
    axes.set(xlabel="minutes (grey: a file goes bad)", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--epochs", type=int, help="exactly so many, whatever they take")
    parser.add_argument("--every", type=float, default=60, help="seconds between two bad files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    out = args.out.resolve()
    folders = {name: out / name for name in ("undisturbed", "disturbed")}
    if any(folder.exists() for folder in folders.values()):
        sys.exit(f"error: {out} holds a soak already; remove it or choose another --out")
    write_dataset(out / "data", DemoConfig())
    videos, copy = out / "data/videos", folders["disturbed"] / "videos"
    shutil.copytree(videos, copy)
    (folders["disturbed"] / "aside").mkdir()
    folders["undisturbed"].mkdir()

    epochs = args.epochs or max(1, round(args.minutes * EPOCHS_PER_MINUTE))
    read = {"undisturbed": videos, "disturbed": copy}
    began = time.monotonic()
    runs = {name: start_training(folder, read[name], epochs) for name, folder in folders.items()}
    times, events = list[float](), list[dict[str, Any]]()
    samples: dict[str, list[Memory]] = {name: [] for name in runs}
    trouble = disturb(copy, folders["disturbed"] / "aside", args.every)
    begun = folders["disturbed"] / "run" / METRICS
    try:
        # A run that fails ends the other, too.
        while None in (codes := [run.poll() for run in runs.values()]) and not any(codes):
            times.append(time.monotonic() - began)
            for name, run in runs.items():
                if run.poll() is None:
                    samples[name].append(memory_of_run(run.pid))
            # Videos that are bad before the first step are skipped by the whole run.
            training = begun.exists() and begun.stat().st_size
            if training and runs["disturbed"].poll() is None and (event := next(trouble)):
                events.append({"seconds": times[-1]} | event)
            time.sleep(SAMPLE_S)
    finally:
        for run in runs.values():
            run.kill()
            run.wait()

    results = {
        name: summarise_run(folders[name], runs[name].poll(), samples[name]) for name in runs
    }
    wrong = find_faults(results)
    settings = {"epochs": epochs, "every_s": args.every, "minutes": times[-1] / 60}
    record: dict[str, Any] = {"settings": settings, "faults": wrong, "runs": results}
    record |= {"events": events, "seconds": times, "samples_mb": samples}
    write_text(out / "soak.json", json.dumps(record, indent=1) + "\n")
    draw_memory(times, samples, events, out / "memory.png")
    print(
        f"{settings['minutes']:.1f} minutes, {epochs} epochs, {len(events)} times a file went bad"
    )
    print(runs_table(results))
    if wrong:
        sys.exit("error: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
