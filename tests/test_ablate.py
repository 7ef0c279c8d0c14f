"""Grids of runs as their users start them; most runs are stand-ins that take a moment.

Jobs are those of this machine, and of a slurm that a few scripts play.
"""

import asyncio
import csv
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from configs.progress import ProgressBar
from evaluate.annotations import Segment, read_annotations, select_videos
from evaluate.files.predictions import read_predictions
from evaluate.mean_ap import Floats
from evaluate.metrics.bootstrap import resample
from tests.conftest import REPOSITORY
from tests.test_e2e import DEMO, ENVIRONMENT, QUICK, TWO_PROCESSES, script
from tests.test_report import read
from train.ablation import runner
from train.ablation.grid import Grid, Row, Run, read_grid
from train.ablation.records import training_digest
from train.ablation.results import RESAMPLES, SEED, _Scores
from train.ablation.runner import Scheduler, _progress
from train.ablation.settings import check_settings
from train.config import EvaluationConfig

TIOUS = [0.3, 0.5, 0.8, 0.9]

TRAIN = '''
"""Stands in for a training script: its weights are a hash of all that they depend on."""
import argparse, hashlib, os, sys, time
from pathlib import Path
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("config", "out", "training.seed", "cache", "forward-from", "reversed-from"):
    parser.add_argument(f"--{name}")
parser.add_argument("--checkpoint", nargs="+", default=[])
parser.add_argument("--resume", action="store_true")
for name in ("sleep", "quality", "fail", "data.annotations", "stop"):
    parser.add_argument(f"--{name}", default="0")
args = vars(parser.parse_args())
assert args["resume"] and os.environ["OMP_NUM_THREADS"] == "1" and "RANK" not in os.environ
out, inputs = Path(args["out"]), [*args["checkpoint"]]
inputs += [args[name] for name in ("forward_from", "reversed_from") if args[name]]
with open("calls.txt", "a") as calls:
    calls.write(f"begin {out}\\n")
print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(float(args["sleep"]))
if args["training.seed"] in args["fail"].split(","):
    print("error: this seed fails\\nnot the last word", file=sys.stderr)
    sys.exit(1)
texts = [Path(file).read_text() for file in [*inputs, args["config"]]]
texts += [args["training.seed"], args["quality"]]
digest = hashlib.sha256(repr(texts).encode()).hexdigest()
data = f"{{annotations: {args['data.annotations']}, videos: videos}}"
(out / "config.yaml").write_text(f"out: {out}\\ndata: {data}\\n")
(out / "last.pt").write_text(f"{args['quality']} {digest} {args['data.annotations']}")
with open("calls.txt", "a") as calls:
    calls.write(f"end {out}\\n")
'''

SCORE = '''
"""Stands in for evaluate/run.py: finds each action with a random tIoU, around the weights' quality.

The score of a detection is its tIoU, so average precision is the share of the found: no numpy.
"""
import argparse, json, random
from pathlib import Path
from evaluate.annotations import Detection, read_annotations, select_videos
from evaluate.files.predictions import write_predictions
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("checkpoint", "cache", "subset", "out"):
    parser.add_argument(f"--{name}")
parser.add_argument("--tious", nargs="+", type=float)
args = parser.parse_args()
quality, digest, annotations = Path(args.checkpoint).read_text().split(" ")
rng = random.Random(digest + args.subset)
found, tious = {}, {}
for video in select_videos(read_annotations(Path(annotations)), args.subset):
    found[video.name] = []
    for label, start, end in video.segments:
        tiou = min(1, max(0.01, rng.gauss(float(quality), 0.2)))
        found[video.name].append(Detection(label, start, start + tiou * (end - start), tiou))
        tious.setdefault(label, []).append(tiou)
metrics = {
    f"mAP@{limit:g}": sum(sum(t >= limit for t in each) / len(each) for each in tious.values())
    / len(tious)
    for limit in args.tious
}
if "tuned" in args.checkpoint:
    metrics["streams"] = {"forward": {name: value / 2 for name, value in metrics.items()}}
out = Path(args.out)
out.mkdir(parents=True, exist_ok=True)
write_predictions(out / "predictions.json", found)
(out / "metrics.json").write_text(json.dumps(metrics))
with open("calls.txt", "a") as calls:
    calls.write(f"score {out}\\n")
'''


def small_grid() -> dict[str, Any]:
    stand_in = {"script": "stand_in.py", "config": "config.yaml"}
    return {
        "out": "study",
        "cache": "study/cache",
        "seeds": [3, 5],
        "subset": "test",
        "selection": "validation",
        "tious": TIOUS,
        "average": [0.3, 0.5],
        "overrides": {"data.annotations": "annotations.json", "quality": 0.4},
        "rows": {
            # Not in the order they must run in.
            "tuned": stand_in
            | {
                "forward_from": "forward",
                "reversed_from": "reversed",
                "overrides": {"quality": 0.9},
            },
            "control": stand_in | {"checkpoint": ["forward", "forward+1"]},
            "forward": stand_in | {"overrides": {"quality": 0.6}},
            "reversed": stand_in,
        },
        "singles": ["forward", "reversed"],
        "controls": ["control"],
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins for the scripts, small annotations and a grid; also the cwd."""
    monkeypatch.chdir(tmp_path)
    set_up(tmp_path)
    return tmp_path


def set_up(folder: Path) -> None:
    (folder / "evaluate").mkdir()
    (folder / "stand_in.py").write_text(TRAIN)
    (folder / "evaluate/run.py").write_text(SCORE)
    (folder / "config.yaml").write_text("some: setting\n")
    rng = random.Random(0)
    database = {
        f"{subset} {number}": {
            "subset": subset,
            "annotations": [
                {"segment": [start, start + rng.uniform(2, 6)], "label": rng.choice("abc")}
                for start in range(0, 50, 10)
            ],
        }
        for subset in ("test", "validation")
        for number in range(8)
    }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    write(folder, small_grid())


def write(folder: Path, grid: dict[str, Any]) -> None:
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))


def environment(**more: str) -> dict[str, str]:
    bare = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"}
    return bare | {"PYTHONPATH": str(REPOSITORY)} | more


COMMAND = [str(REPOSITORY / "train/ablate.py"), "grid.yaml", "--processes", "2"]


def ablate(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, *COMMAND, *arguments],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def good(folder: Path, *arguments: str) -> str:
    done = ablate(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def calls(folder: Path, what: str = "begin") -> list[str]:
    """What was begun, ended or scored since the last look, without the study's folder."""
    path = folder / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.removeprefix(f"{what} study/") for line in lines if line.startswith(what)]


def forget_calls(folder: Path) -> None:
    (folder / "calls.txt").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    set_up(folder)
    done = ablate(folder, CUDA_VISIBLE_DEVICES="4,7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (folder / "study/table.txt").read_text()
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished study, its calls forgotten; also the cwd."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    forget_calls(folder)
    monkeypatch.chdir(folder)
    return folder


def test_every_run_waits_for_those_it_builds_on(finished: Path) -> None:
    lines = (finished / "calls.txt").read_text().splitlines()
    assert len(lines) == 8 * (2 + 2)  # begin, end and two subsets
    for seed, other in ((3, 5), (5, 3)):
        for row, inputs in {
            "tuned": [f"forward/{seed}", f"reversed/{seed}"],
            "control": [f"forward/{seed}", f"forward/{other}"],
        }.items():
            begin = lines.index(f"begin study/{row}/{seed}")
            assert all(lines.index(f"end study/{each}") < begin for each in inputs)
    log = (finished / "study/control/5/log.txt").read_text()
    command = log.splitlines()[0]
    assert command == (
        "$ python stand_in.py --config config.yaml --resume --out study/control/5 "
        "--training.seed 5 --cache study/cache --checkpoint study/forward/5/last.pt "
        "study/forward/3/last.pt --data.annotations=annotations.json --quality=0.4"
    )
    assert log.splitlines()[2].startswith("$ python evaluate/run.py --checkpoint study/control/5/")
    assert "--subset validation --tious 0.3 0.5 0.8 0.9 --out study/control/5/validation" in log


def test_runs_begin_in_the_order_of_the_grid(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid that is ended half way has its first rows, with all seeds."""
    rows = {name: small_grid()["rows"]["reversed"] for name in ("first", "second", "third")}
    write(place, small_grid() | {"rows": rows, "seeds": [*range(9)], "singles": [], "controls": []})
    grid, begun = read_grid(place / "grid.yaml"), list[Run]()
    rng, sleep = random.Random(0), asyncio.sleep

    async def do(grid: Grid, run: Run, *rest: object) -> str:
        begun.append(run)
        await sleep(0.01)
        return ""

    monkeypatch.setattr(runner, "_do", do)
    # Who waits looks at times that drift apart in the hours of real runs.
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(rng.uniform(0.001, 0.02)))
    assert not Scheduler(grid, grid.runs(), 1, "session", quiet=True).carry_out()
    assert begun == grid.runs()


def test_runs_at_a_time_are_spread_over_gpus(finished: Path) -> None:
    logs = [file.read_text() for file in (finished / "study").glob("*/*/log.txt")]
    assert len(logs) == 8 and {log.splitlines()[1] for log in logs} == {"GPU 4", "GPU 7"}


def bootstrap(folder: Path, row: str, seed: int, tious: list[float]) -> Floats:
    videos = select_videos(read_annotations(folder / "annotations.json"), "test")
    truth: dict[str, tuple[Segment, ...]] = {video.name: video.segments for video in videos}
    found = read_predictions(folder / f"study/{row}/{seed}/test/predictions.json")
    rows: Floats = resample(truth, found, tious, RESAMPLES, SEED).mean(axis=1)
    return rows


def test_the_table_holds_what_the_runs_have_left(finished: Path) -> None:
    table = json.loads((finished / "study/table.json").read_text())
    assert table["best_single"] == "forward" and table["best_fusion"] == "tuned"
    assert [row["row"] for row in table["rows"]] == ["tuned", "control", "forward", "reversed"]
    lines = list(csv.DictReader((finished / "study/table.csv").read_text().splitlines()))
    text = (finished / "study/table.txt").read_text().splitlines()
    for row, line, printed in zip(table["rows"], lines, text[2:], strict=False):
        name = row["row"]
        metrics = [
            json.loads((finished / f"study/{name}/{seed}/test/metrics.json").read_text())
            for seed in (3, 5)
        ]
        for tiou in TIOUS:
            values = [one[f"mAP@{tiou:g}"] for one in metrics]
            expected = [sum(values) / 2, abs(values[0] - values[1]) / 2**0.5]
            assert row["per_tiou"][f"{tiou:g}"] == pytest.approx(expected)
            assert float(line[f"mAP@{tiou:g}"]) == pytest.approx(expected[0])
            shown = " ± ".join(f"{value:.3f}".replace("0.", ".") for value in expected)
            assert f" {shown} " in printed
        average = np.mean([[one["mAP@0.3"], one["mAP@0.5"]] for one in metrics])
        assert row["average"][0] == pytest.approx(average)
        assert row["streams"] == ({"forward": average / 2} if name == "tuned" else {})
        if name == "forward":
            assert row["differences"] == {} and row["kind"] == "single"
            continue
        for what, tious in {"average": [0.3, 0.5], "0.9": [0.9], "0.8": [0.8]}.items():
            ours, theirs = (
                np.mean([bootstrap(finished, each, seed, tious) for seed in (3, 5)], axis=0)
                for each in (name, "forward")
            )
            rows = ours - theirs
            expected = [rows[0], *np.percentile(rows[1:], [2.5, 97.5])]
            assert row["differences"][what] == pytest.approx(expected)
            assert float(line[f"difference {what} high"]) == pytest.approx(expected[2])
    first = next(n for n, line in enumerate(text) if line.startswith("best fusion on 'validation'"))
    best = text[first : first + 4]
    assert ": tuned (" in best[0] and "to forward (single stream); @0.8 " in best[1]
    assert "to reversed (single stream)" in best[2] and "to control (control)" in best[3]
    assert len({len(line) for line in text if line.startswith("|")}) == 1
    assert not any(line.startswith("note") for line in text)  # both ways to mAP agree
    assert (finished / "study/table.png").read_bytes().startswith(b"\x89PNG")
    page, content = read(finished / "study")
    printed_cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[2:6]]
    assert content["tables"]["rows"]["rows"] == printed_cells
    assert "tuned/5/log.txt" in page.attributes("href")
    assert "ablate.py" in content["texts"]["The exact command"]


def test_an_unchanged_grid_returns_at_once(copy: Path) -> None:
    before = (copy / "study/table.json").stat().st_mtime_ns
    done = ablate(copy, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and done.stdout == (copy / "study/table.txt").read_text()
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "train.ablation.runner" in imported and not imported & {"torch", "numpy", "matplotlib"}
    assert not calls(copy) and (copy / "study/table.json").stat().st_mtime_ns == before
    assert "8 of 8 runs are done" in good(copy, "--plan")


@pytest.mark.slow
def test_what_has_changed_is_done_again(copy: Path) -> None:
    grid = small_grid()
    # Another row's setting: it and what builds on it, into a folder that holds nothing old.
    grid["rows"]["reversed"]["overrides"] = {"quality": 0.3}
    write(copy, grid)
    (copy / "study/reversed/3/stale").write_text("of the old run")
    plan = good(copy, "--plan")
    assert "reversed/3  again: its settings" in plan and "tuned/5     after reversed/5" in plan
    assert "control/5   done" in plan and not calls(copy)
    good(copy)
    assert sorted(calls(copy)) == ["reversed/3", "reversed/5", "tuned/3", "tuned/5"]
    assert not (copy / "study/reversed/3/stale").exists()

    # What is printed: nothing is trained for it.
    forget_calls(copy)
    grid["tious"] = [0.3, 0.5, 0.9]
    write(copy, grid)
    assert "@0.8" not in good(copy)
    assert not calls(copy) and len(calls(copy, "score")) == 16

    # Weights of an input that somebody has replaced.
    forget_calls(copy)
    (copy / "study/reversed/5/last.pt").write_text("0.1 other annotations.json")
    good(copy)
    assert calls(copy) == ["tuned/5"]
    assert sorted(calls(copy, "score")) == [
        f"{run}/5/{subset}" for run in ("reversed", "tuned") for subset in ("test", "validation")
    ]

    # A file that an override names, and the config: everything.
    for name in ("annotations.json", "config.yaml"):
        content = (copy / name).read_text()
        (copy / name).write_text(content + "\n")
        assert "0 of 8 runs are done" in good(copy, "--plan")
        (copy / name).write_text(content)
        assert "8 of 8 runs are done" in good(copy, "--plan")


@pytest.mark.slow
def test_missing_results_are_made_again(copy: Path) -> None:
    (copy / "study/tuned/3/test/metrics.json").unlink()
    (copy / "study/control/3/last.pt").unlink()
    (copy / "study/table.png").unlink()
    good(copy)
    assert calls(copy) == ["control/3"] and len(calls(copy, "score")) == 4
    assert (copy / "study/table.png").exists()


@pytest.mark.slow
def test_a_failing_run_takes_along_only_what_builds_on_it(place: Path) -> None:
    grid = small_grid()
    grid["rows"]["reversed"]["overrides"] = {"fail": "5"}
    write(place, grid)
    for _ in range(2):  # tried again, and told again
        forget_calls(place)
        done = ablate(place)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "failed: reversed/5: error: this seed fails\n" in done.stdout
        assert "failed: tuned/5: skipped: it needs reversed/5, which is not done" in done.stdout
        assert "reversed/5" in calls(place) and "tuned/5" not in calls(place)
    assert calls(place) == ["reversed/5"]
    table = json.loads((place / "study/table.json").read_text())
    assert {row["row"]: row["seeds"] for row in table["rows"]}["tuned"] == [3]
    assert "| tuned    | 1 " in done.stdout
    assert "once more: error: this seed fails" in good(place, "--plan")
    write(place, small_grid())
    assert "failed" not in good(place)


def start(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(COMMAND[:2] if arguments else COMMAND), *arguments],
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A pytest in the background was told to ignore these, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(folder: Path, what: str, count: int) -> None:
    limit = time.monotonic() + 60
    while len(calls(folder, what)) < count:
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_it_goes_on_and_waits_for_what_it_left_running(place: Path, finished: Path) -> None:
    grid = small_grid()
    grid["overrides"]["sleep"] = 1.5
    write(place, grid)
    process = start(place)
    wait_for(place, "begin", 2)
    os.killpg(process.pid, signal.SIGKILL)  # its runs are in groups of their own and live on
    process.communicate()
    assert not calls(place, "end")
    good(place)
    # Nothing was begun while its orphan was still at it, and then --resume went on from there.
    begun = sorted(calls(place))
    assert begun == sorted([*set(begun), "forward/3", "forward/5"])
    lines = (place / "calls.txt").read_text().splitlines()
    assert lines.index("end study/forward/3") < lines.index("begin study/forward/3", 2)
    assert rows(place) == rows(finished)


def test_an_interrupt_ends_the_runs(place: Path) -> None:
    grid = small_grid()
    grid["overrides"]["sleep"] = 600
    write(place, grid)
    for number in (signal.SIGINT, signal.SIGTERM):
        forget_calls(place)
        process = start(place)
        wait_for(place, "begin", 2)
        time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "goes on" in out and "Traceback" not in err, err
        log = (place / "study/forward/3/log.txt").read_text()
        assert "KeyboardInterrupt" in log  # told, not killed
    assert json.loads((place / "study/forward/3/run.json").read_text())["seconds"] > 0
    assert "forward/3   goes on" in good(place, "--plan")


@pytest.mark.slow
def test_two_processes_share_the_runs(place: Path) -> None:
    grid = small_grid()
    grid["overrides"]["sleep"] = 0.7
    grid["rows"]["reversed"]["overrides"] = {"fail": "3"}
    write(place, grid)
    done = ablate(place, "--processes", "1", launcher=TWO_PROCESSES)
    assert done.returncode == 1
    assert sorted(calls(place)) == sorted(set(calls(place)))  # the failing one, too
    assert len(calls(place)) == 7 and "failed: reversed/3" in done.stdout
    assert done.stdout.count("| control ") == 1
    # At times both were at work.
    lines = (place / "calls.txt").read_text().splitlines()
    running = most = 0
    for line in (line for line in lines if not line.endswith("reversed/3")):  # never ends
        running += {"begin": 1, "end": -1}.get(line.split()[0], 0)
        most = max(most, running)
    assert most == 2


@pytest.mark.slow
def test_a_grid_of_ten_lines_is_enough(place: Path) -> None:
    (place / "grid.yaml").write_text(
        """out: runs/mine
seeds: [3, 5]
rows:
  forward: {script: stand_in.py, config: config.yaml}
  reversed: {script: stand_in.py, config: config.yaml}
  average: {script: stand_in.py, config: config.yaml, checkpoint: [forward, reversed]}
singles: [forward, reversed]
overrides: {data.annotations: annotations.json, quality: 0.4}
"""
    )
    grid = read_grid(Path("grid.yaml"))
    assert (grid.cache, grid.seeds, grid.subsets) == ("runs/mine/cache", (3, 5), ("validation",))
    assert grid.tious == grid.average == EvaluationConfig.tious
    done = ablate(place)
    assert done.returncode == 0 and "best fusion on 'validation': average" in done.stdout, (
        done.stdout + done.stderr
    )


def test_a_run_says_how_far_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert _progress(log) == ""
    log.write_text("$ python train/e2e.py\nprobing videos: 100% 3/3 [00:31<00:00]\n")
    with ProgressBar(total=100, desc="training", file=log.open("a")) as bar:
        bar.update(24)
    assert _progress(log) == " (training 24%)"
    with log.open("a") as file:
        file.write("$ python evaluate/run.py\nwarning: 50% of something\n")
    assert _progress(log) == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": [1]}, "unknown setting 'seed'; did you mean 'seeds'?"),
        ({"out": None}, "required: out"),
        ({"cache": " "}, "cache: expected a text, not ' '"),
        ({"seeds": [1, "x"]}, "seeds: expected list of whole number in brackets, not x"),
        ({"seeds": [1, -2]}, "seeds: expected whole numbers from 0 on, not -2"),
        ({"seeds": []}, "seeds: expected at least one"),
        ({"seeds": [1, 1]}, "names something twice"),
        ({"tious": 0.5}, "tious: expected list of number in brackets, not 0.5"),
        ({"tious": [0.5, 1.5]}, "tious: expected overlaps in"),
        ({"average": [0.4]}, "average: only overlaps that are among 'tious'"),
        ({"singles": ["forwards"]}, "singles: 'forwards' is unknown; did you mean 'forward'?"),
        ({"controls": ["forward"]}, "'forward' is among singles and controls"),
        ({"overrides": {"training.seed": 1}}, "'training.seed' cannot be overridden: the grid"),
        ({"overrides": {"data": {"a": 1}}}, "'data' cannot be {'a': 1}; write one dotted name"),
        ({"cache": "study/forward"}, "is the folder of runs, too"),
        ({"seeds": [1]}, "rows.control.checkpoint: 'forward+1' is 'forward' of the same"),
        ({"rows": []}, "rows: expected mapping, not []"),
        ({"rows": {"forward": 3}}, "rows.forward: expected a mapping of settings, not 3"),
        ({"rows": {"a": {}}}, "rows.a: settings without a default are missing: script"),
        (
            {"rows": {"a/b": {"script": "stand_in.py", "config": "config.yaml"}}},
            "rows: 'a/b' names a folder",
        ),
    ],
)
def test_wrong_grids_are_refused(place: Path, change: dict[str, Any], expected: str) -> None:
    write(place, small_grid() | change)
    with pytest.raises(ValueError) as error:
        read_grid(Path("grid.yaml"))
    assert expected in str(error.value) and str(error.value).startswith("grid.yaml: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"confg": "x"}, "rows.forward: unknown setting 'confg'; did you mean 'config'?"),
        ({"checkpoint": ["reverse"]}, "'reverse' is unknown; did you mean 'reversed'?"),
        ({"checkpoint": ["runs/a/last.pt"]}, "'runs/a/last.pt' is a file; a row of the grid"),
        (
            {"checkpoint": "reversed+x"},
            "rows.forward: checkpoint: 'reversed+x': after the + stands how many seeds further",
        ),
        ({"checkpoint": "tuned"}, "rows: tuned, control, forward wait for each other"),
        ({"forward_from": 3}, "rows.forward: forward_from: expected text or null, not 3"),
        ({"script": "no.py"}, "rows.forward.script: there is no file no.py in /"),
        ({"config": None}, "rows.forward: give 'config', 'checkpoint' or both"),
    ],
)
def test_wrong_rows_are_refused(place: Path, change: dict[str, Any], expected: str) -> None:
    grid = small_grid()
    grid["rows"]["forward"] |= change
    write(place, grid)
    with pytest.raises(ValueError) as error:
        read_grid(Path("grid.yaml"))
    assert expected in str(error.value)


def experiment_grid() -> dict[str, Any]:
    """A grid of our own scripts, with every way to build on other rows."""
    stream = {"script": "train/e2e.py", "config": str(DEMO)}
    heads = {"script": "train/heads.py", "checkpoint": ["forward", "reversed"]}
    return {
        "out": "study",
        "rows": {
            "forward": stream,
            "reversed": stream | {"overrides": {"direction": "reversed"}},
            # Both are right only as the streams that are fused stay as they are.
            "calibrated": heads | {"config": "configs/fusion/calibrated.yaml"},
            "average": heads | {"config": "configs/fusion/average.yaml"},
            "distilled": {
                "script": "train/heads.py",
                "config": "configs/fusion/distilled.yaml",
                "checkpoint": "forward",
                "teacher": "average",
            },
            "soup": {"script": "train/soup.py", "checkpoint": ["forward", "distilled"]},
        },
    }


def test_settings_of_all_rows_are_checked_before_any_runs(place: Path) -> None:
    grid = experiment_grid()
    write(place, grid)
    check_settings(read_grid(Path("grid.yaml")))
    wrong = {
        "forward": {},
        "reversed": {"direction": "backward"},
        "calibrated": {"head.learns": True},
        "average": {"fusion.methd": "average"},
        "distilled": {"training.epochs": "many"},
    }
    for name, overrides in wrong.items():
        grid["rows"][name] |= {"overrides": overrides}
    grid["rows"]["other"] = {"script": "stand_in.py", "config": "config.yaml"}
    grid["rows"]["other"]["overrides"] = {"quality": 1}
    write(place, grid)
    for plan in ([], ["--plan"]):
        done = ablate(place, *plan)
        assert done.returncode == 1 and not (place / "study").exists()
        first, *lines = done.stderr.splitlines()
        assert first == "error: settings of 4 rows are wrong, and nothing was begun:"
        assert lines == [
            "  rows.reversed: direction: expected forward or reversed, not backward",
            "  rows.calibrated: fusion.method calibrated is fitted to streams that stay as they "
            "are; set head.learns false and backbone.trainable_from_block to the trunk's depth, 6",
            "  rows.average: unknown setting 'fusion.methd'; did you mean 'fusion.method'?",
            "  rows.distilled: training.epochs: expected whole number, not many",
        ]


def test_one_mistake_in_many_rows_is_told_once(place: Path) -> None:
    grid = experiment_grid() | {"overrides": {"training.epcohs": 3}}
    write(place, grid)
    with pytest.raises(ValueError) as error:
        check_settings(read_grid(Path("grid.yaml")))
    assert str(error.value).count("training.epcohs") == 1
    assert "rows.distilled, rows.soup: unknown setting 'training.epcohs'; did" in str(error.value)


@pytest.mark.parametrize("name", ["study", "labels", "thumos14_videomae_h"])
def test_shipped_grids_have_right_settings(name: str) -> None:
    check_settings(read_grid(REPOSITORY / f"configs/ablate/{name}.yaml"))


def test_wrong_use_is_one_line(place: Path) -> None:
    (place / "grid.yaml").write_text("rows: {a: 1}\nrows: {b: 2}\n")
    done = ablate(place)
    assert done.returncode == 1
    assert done.stderr == "error: grid.yaml: not valid YAML: line 2: 'rows' is given twice\n"
    write(place, small_grid())
    (place / "study/forward/3").mkdir(parents=True)
    (place / "study/forward/3/last.pt").write_text("precious")
    done = ablate(place)
    assert done.returncode == 1 and "this script did not make" in done.stderr
    assert (place / "study/forward/3/last.pt").read_text() == "precious"


def test_scripts_that_are_not_in_the_working_folder_are_ours(place: Path) -> None:
    shutil.rmtree(place / "evaluate")
    grid = read_grid(Path("grid.yaml"))
    assert grid.scoring(Run("forward", 3), "test")[0] == str(REPOSITORY / "evaluate/run.py")


@pytest.mark.slow
def test_a_real_head_is_trained_scored_and_counted(data: list[str], tmp_path: Path) -> None:
    settings = [each.removeprefix("--").split("=") for each in [*data, *QUICK]]
    shorter = {"data.validation_subset": None, "training.epochs": 2, "training.stop_epoch": 2}
    grid = {
        "out": str(tmp_path / "study"),
        "cache": str(tmp_path / "cache"),
        "seeds": [0],
        "subset": "test",
        "selection": "test",
        "tious": [0.3, 0.5],
        "average": [0.3],
        "overrides": {name: yaml.safe_load(value) for name, value in settings} | shorter,
        "rows": {"head": {"script": "train/heads.py", "config": str(DEMO)}},
    }
    write(tmp_path, grid)
    arguments = ["train/ablate.py", str(tmp_path / "grid.yaml")]
    for _ in range(2):
        done = script(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "study/table.json").read_text())["rows"]
    metrics = json.loads((tmp_path / "study/head/0/test/metrics.json").read_text())
    assert row["average"] == [metrics["mAP@0.3"], None] and "note:" not in done.stdout
    learning = f"{row['parameters']:,}"
    assert f"learning {learning}\n" in (tmp_path / "study/head/0/log.txt").read_text()
    assert f"| {learning} | " in done.stdout


def test_runs_come_behind_what_they_need(place: Path) -> None:
    grid = read_grid(Path("grid.yaml"))
    rows = ["forward", "control", "reversed", "tuned"]
    assert grid.runs() == [Run(row, seed) for row in rows for seed in (3, 5)]
    assert grid.inputs(Run("control", 5)) == {
        "--checkpoint": [Run("forward", 5), Run("forward", 3)]
    }


submitit = pytest.mark.skipif(not find_spec("submitit"), reason="submitit is not installed")
LOCAL = ("--on", "local", "--resources", "timeout_min=5")
SLURM = ("--on", "slurm", "--resources", "timeout_min=30", "slurm_partition=gpu")

# The queue stands still until the file `go` is there; a job's processes are a session of their own.
PLAYED = {
    "sbatch": """
import os, subprocess, sys
from pathlib import Path
here = Path(os.environ["PLAYED"])
job = str(len(list(here.glob("*.sbatch"))) + 1)
text = Path(sys.argv[-1]).read_text()
(here / f"{job}.sbatch").write_text(text)
wait = f"while [ ! -e {here}/go ]; do sleep 0.05; done; {text}"
process = subprocess.Popen(
    ["sh", "-c", wait],
    env=os.environ | {"SLURM_JOB_ID": job},
    start_new_session=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
(here / f"{job}.pid").write_text(str(process.pid))
print("Submitted batch job", job)
""",
    "srun": """
import os, sys
words = [word.replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0") for word in sys.argv]
out, error = (words[words.index(name) + 1] for name in ("--output", "--error"))
os.makedirs(os.path.dirname(out), exist_ok=True)
for number, name in enumerate((out, error), 1):
    os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
command = words[words.index("--error") + 2 :]
os.execvp(command[0], command)
""",
    "sacct": """
import os
from pathlib import Path
print("JobID|State|NodeList")
for file in Path(os.environ["PLAYED"]).glob("*.pid"):
    try:
        os.kill(int(file.read_text()), 0)
        print(f"{file.stem}|RUNNING|here")
    except ProcessLookupError:
        print(f"{file.stem}|COMPLETED|here")
""",
}


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "study/table.json").read_text())["rows"]
    for row in found:
        del row["seconds"]
    return found


@pytest.mark.slow
@submitit
def test_jobs_make_what_subprocesses_make(place: Path, finished: Path) -> None:
    """From a folder that has none of our code."""
    done = ablate(place, *LOCAL, CUDA_VISIBLE_DEVICES="4,7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(place) == rows(finished) and len(calls(place)) == 8
    logs = [file.read_text() for file in (place / "study").glob("*/*/log.txt")]
    assert len(logs) == 8 and {log.splitlines()[1] for log in logs} == {"GPU 4", "GPU 7"}


def kill_all(pid: int) -> None:
    """Kill all of a job: the machine it was on is gone."""
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        process.kill()


def kill_job(pid: int) -> None:
    """Kill a job, but not the training that it has begun."""
    root = psutil.Process(pid)
    for process in [root, *root.children()]:
        process.kill()


def preempt(pid: int) -> None:
    """Say what engines say when they want the machine back; then submitit begins it again."""
    (job,) = psutil.Process(pid).children()
    job.send_signal(signal.SIGUSR2)


def find_job(folder: Path, run: str) -> int:
    return int((folder / f"study/{run.replace('/', '/.')}.lock").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_all, kill_job, preempt])
@submitit
def test_a_lost_job_is_followed_by_another(
    place: Path,
    finished: Path,
    kill: Callable[[int], None],
) -> None:
    grid = small_grid()
    grid["overrides"]["sleep"] = 2
    write(place, grid)
    process = start(place, *LOCAL, "--processes", "2")
    wait_for(place, "begin", 2)
    kill(find_job(place, "forward/3"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "failed" not in out, out + err
    assert calls(place).count("forward/3") == 2 and len(calls(place)) == 9
    assert rows(place) == rows(finished)
    if kill is kill_job:  # its training lived on, and nobody else began it meanwhile
        lines = (place / "calls.txt").read_text().splitlines()
        again = lines.index("begin study/forward/3", lines.index("begin study/forward/3") + 1)
        assert lines.index("end study/forward/3") < again


@submitit
def test_a_run_whose_jobs_are_lost_again_and_again_is_given_up(place: Path) -> None:
    grid = small_grid()
    grid["rows"] = {"forward": grid["rows"]["forward"] | {"overrides": {"sleep": 600}}}
    write(place, grid | {"singles": ["forward"], "controls": [], "seeds": [3]})
    process = start(place, *LOCAL)
    for count in (1, 2, 3):
        wait_for(place, "begin", count)
        kill_all(find_job(place, "forward/3"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("error: ") == 1, err
    assert "3 jobs ended before it was done; the last: it ended (" in err


@pytest.mark.slow
@submitit
def test_a_failing_run_is_no_lost_job(place: Path) -> None:
    grid = small_grid()
    grid["rows"]["reversed"]["overrides"] = {"fail": "5"}
    write(place, grid)
    done = ablate(place, *LOCAL)
    assert done.returncode == 1 and calls(place).count("reversed/5") == 1
    assert "failed: reversed/5: error: this seed fails\n" in done.stdout
    assert "failed: tuned/5: skipped: it needs reversed/5" in done.stdout


@submitit
def test_an_interrupt_ends_the_jobs_of_this_machine(place: Path) -> None:
    grid = small_grid()
    grid["overrides"]["sleep"] = 600
    write(place, grid)
    process = start(place, *LOCAL)
    wait_for(place, "begin", 1)
    job = psutil.Process(find_job(place, "forward/3"))
    family = [job, *job.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on" in out and "Traceback" not in err, err
    assert not psutil.wait_procs(family, timeout=20)[1]


@pytest.fixture
def slurm(place: Path) -> Iterator[dict[str, str]]:
    """Environment with a slurm."""
    folder = place / "slurm"
    folder.mkdir()
    for name, code in PLAYED.items():
        file = folder / name
        file.write_text(f"#!{sys.executable}\n{code}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    yield {"PLAYED": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}
    for file in folder.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)


@pytest.mark.slow
@submitit
def test_jobs_in_the_queue_are_not_submitted_again(
    place: Path,
    finished: Path,
    slurm: dict[str, str],
) -> None:
    folder = place / "slurm"
    grid = small_grid()
    grid["rows"]["tuned"]["resources"] = {"slurm_partition": "large"}
    write(place, grid)
    process = start(place, *SLURM, **slurm)
    limit = time.monotonic() + 60
    # All that wait for no other, and their names are written down.
    while sum(bool(file.stat().st_size) for file in place.glob("study/*/.*.lock")) < 4:
        assert time.monotonic() < limit and process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not calls(place)
    text = (folder / "1.sbatch").read_text()
    assert "--partition=gpu" in text and "--time=30" in text

    process = start(place, *SLURM, **slurm)
    time.sleep(3)
    assert len(list(folder.glob("*.sbatch"))) == 4
    (folder / "go").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "job 1 of an earlier launch is working on it" in err
    jobs = [file.read_text() for file in folder.glob("*.sbatch")]
    assert len(jobs) == len(calls(place)) == 8
    assert sum("--partition=large" in job and "--time=30" in job for job in jobs) == 2
    assert rows(place) == rows(finished)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--on", "local"), "--resources: say how many minutes"),
        (("--on", "slurm", "--resources", "timeout_min=5"), "--on slurm: "),
        ((*LOCAL, "no_such=3"), "--resources: "),
        (("--resources", "timeout_min=5"), "add --on"),
    ],
)
@submitit
def test_wrong_resources_are_one_line(
    place: Path,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    done = ablate(place, *arguments)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert expected in done.stderr and not calls(place)


@submitit
def test_a_wrong_resource_of_a_row_is_told_with_its_name(place: Path) -> None:
    grid = small_grid()
    grid["rows"]["reversed"]["resources"] = {"gpus_per_nod": 1}
    write(place, grid)
    done = ablate(place, *LOCAL)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: --resources with rows.reversed.resources: ")
    assert "gpus_per_nod" in line and not calls(place)


def test_a_row_may_learn_from_another_rows_answers() -> None:
    row = Row("train/heads.py", checkpoint="forward", teacher="fused+1")
    assert row.inputs == {
        "--checkpoint": [("forward", 0)],
        "--training.teacher": [("fused", 1)],
    }


def test_a_row_does_not_win_by_a_seed_that_failed() -> None:
    row = Row("train/e2e.py", "config.yaml")
    rows = {"one": row, "two": row, "three": row}
    grid = Grid("out", rows, seeds=(3, 5), subset="test", tious=(0.5,))
    of = {("one", 3): 0.2, ("one", 5): 0.6, ("two", 5): 0.5, ("three", 3): 0.1}
    scores: dict[tuple[Run, str], dict[str, Any]] = {
        (Run(*run), "test"): {"mAP@0.5": value} for run, value in of.items()
    }
    found = _Scores(grid, scores, {run: {} for run, _ in scores})
    assert found.best(["one", "two"], "test") == "one"
    assert found.best(["two", "three"], "test") == "two"  # no seed is common
    assert found.best(["none"], "test") is None


def test_a_config_that_comes_with_the_code_is_read_from_any_folder(place: Path) -> None:
    grid = small_grid()
    grid["rows"]["forward"]["config"] = "configs/e2e/demo/forward.yaml"
    (place / "grid.yaml").write_text(yaml.safe_dump(grid))
    read = read_grid(place / "grid.yaml")
    ours = training_digest(read, Run("forward", 3))
    mine = place / "configs/e2e/demo/forward.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("other: settings\n")  # one of this folder goes first
    assert training_digest(read, Run("forward", 3)) != ours
