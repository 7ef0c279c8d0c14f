"""Progress as it is seen in a terminal and in a log, and sizes of files as people read them."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

import configs.progress
from configs.messages import format_bytes
from configs.progress import ProgressBar
from tests.conftest import REPOSITORY


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock) -> None:
    log = io.StringIO()
    with ProgressBar(total=1000, desc="training", unit="step", file=log) as bar:
        for _ in range(1000):
            clock.now += 0.125
            bar.update()
            bar.set_postfix(loss="0.5")
            tqdm.write("a message", file=log)
    text = log.getvalue()
    lines = [line for line in text.splitlines() if line != "a message"]
    assert "\r" not in text and "\x1b" not in text and "#" not in text
    assert [line.split("[")[0] for line in lines] == [
        *("training:  24% 240/1000 ", "training:  48% 480/1000 "),
        *("training:  72% 720/1000 ", "training:  96% 960/1000 "),
        "training: 100% 1000/1000 ",
    ]
    assert all("loss=0.5" in line for line in lines)


def test_a_log_gets_no_line_of_what_is_over_at_once(clock: Clock) -> None:
    log = io.StringIO()
    for options in ({"leave": False}, {"delay": 2}, {"disable": True}):
        assert list(ProgressBar(range(3), file=log, **options)) == [0, 1, 2]
    assert log.getvalue() == ""
    list(ProgressBar(range(3), "clips", file=log))
    assert log.getvalue().startswith("clips: 100% 3/3") and log.getvalue().endswith("\n")


def test_two_bars_do_not_move_each_other_in_a_log(clock: Clock) -> None:
    log = io.StringIO()
    with ProgressBar(total=9, desc="outer", file=log) as bar:
        for _ in ProgressBar(range(3), "inner", file=log, leave=False):
            clock.now += 31
            bar.update(3)
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()
    assert log.getvalue().count("outer:") == 4 and log.getvalue().count("inner:") >= 2


def test_a_terminal_gets_a_bar() -> None:
    screen = Terminal()
    list(ProgressBar(range(3), file=screen))
    assert "\r" in screen.getvalue() and "##" in screen.getvalue()


@pytest.mark.slow
def test_a_script_in_a_pipe_writes_no_carriage_returns(tmp_path: Path) -> None:
    command = ["extract/demo.py", "--out", str(tmp_path), "--shortest", "6", "--longest", "8"]
    command += [word for name in ("training", "validation", "test") for word in (f"--{name}", "1")]
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"\r" not in done.stdout + done.stderr
    assert b"100% 3/3" in done.stderr


def test_every_bar_is_this_one() -> None:
    stages = ("cache", "configs", "evaluate", "extract", "train")
    here = Path(configs.progress.__file__)
    files = [file for stage in stages for file in (REPOSITORY / stage).rglob("*.py")]
    assert not [str(f) for f in files if f != here and " tqdm(" in f.read_text()]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (87_300, "87.3 kB")),
        *((999_949, "999.9 kB"), (999_951, "1.0 MB"), (1_500_000_000, "1.5 GB")),
        *((1_141_800_000_000, "1,141.8 GB"), (1234.5, "1.2 kB")),
    ],
)
def test_sizes_have_a_unit_that_fits(count: float, text: str) -> None:
    assert format_bytes(count) == text
