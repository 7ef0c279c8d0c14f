"""Disks that are full and folders that cannot be written: told before training, harmless in it."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from configs.atomic import atomic_path
from configs.loader import load
from evaluate.reports.metrics_file import read_metrics
from tests.conftest import REPOSITORY
from tests.test_e2e import DEMO, ENVIRONMENT, QUICK, build, script, the_same_curve
from train.config import Experiment
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.engine.run_folder import LOCK, check_checkpoint_space, claim_folder
from train.tracking.metrics_log import MetricsLog


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let real writes fail where a file would grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("out", ["a file/run", "/proc/palindrome/run", "/dev/full/run", "locked/a"])
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    Path("locked").mkdir(mode=0o500)
    if out.startswith("locked") and os.access("locked", os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(ValueError, match=f"out: cannot write into {out}: .*choose another --out"):
        claim_folder(Path(out), begun=False)


def test_a_folder_is_really_written_to(tmp_path: Path) -> None:
    with files_end_at(0), pytest.raises(ValueError, match="File too large"):
        claim_folder(tmp_path / "new", begun=False)
    claim_folder(tmp_path / "new", begun=False)
    claim_folder(tmp_path / "new", begun=False)  # a run that goes on has it already
    assert [path.name for path in (tmp_path / "new").iterdir()] == [LOCK]


def test_one_run_at_a_time_writes_into_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from pathlib import Path; from train.engine.run_folder import *; "
    code += "claim_folder(Path({!r}), False)"
    code = f"{code.format(str(tmp_path))}; print('claimed', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
    with pytest.raises(ValueError, match=f"another run is writing into {tmp_path}"):
        claim_folder(tmp_path, begun=False)
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.lockf", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
        claim_folder(tmp_path, begun=False)
    other.kill()
    other.communicate()
    claim_folder(tmp_path, begun=False)
    # It ended between two looks at the folder.
    (tmp_path / "last.pt").touch()
    with pytest.raises(ValueError, match="another run"):
        claim_folder(tmp_path, begun=False)
    claim_folder(tmp_path, begun=True)


def test_room_for_all_checkpoints_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, learning = nn.Linear(300, 1000, bias=False), nn.Linear(100, 1000, bias=False)
    frozen.requires_grad_(False)
    model = nn.ModuleList([frozen, learning])  # 1.2 MB and 0.4 MB
    best, last = 1.6 + 0.4, 1.6 + 0.4 + 0.8
    for keeps_best, needed in ((True, 2 * last + best), (False, 2 * last)):
        for free, enough in ((needed - 0.1, False), (needed + 0.1, True)):
            usage = shutil._ntuple_diskusage(10**9, 0, int(free * 1e6))
            monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
            if enough:
                check_checkpoint_space(tmp_path, model, keeps_best)
                continue
            told = f"need {needed:.1f} MB, but the disk of .* has {free:.1f} MB free"
            with pytest.raises(ValueError, match=told):
                check_checkpoint_space(tmp_path, model, keeps_best)
            # What a resumed run has already, it need not find again.
            (tmp_path / "last.pt").write_bytes(bytes(200_000))
            check_checkpoint_space(tmp_path, model, keeps_best)
            (tmp_path / "last.pt").unlink()


def test_a_resumed_run_has_what_its_checkpoints_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, it left 1.2 MB of frozen weights beside files of the rest, and needs them no more."""
    frozen, learning = nn.Linear(300, 1000, bias=False), nn.Linear(100, 1000, bias=False)
    model = nn.ModuleList([frozen.requires_grad_(False), learning])
    sizes = {f"frozen-{'0' * 16}.pt": 1.2, "last.pt": 1.6, "best.pt": 0.8}
    for name, megabytes in sizes.items():
        (tmp_path / name).write_bytes(bytes(int(megabytes * 1e6)))
    needed = 2 * 2.8 + 2.0 - sum(sizes.values())
    for free, enough in ((needed - 0.1, False), (needed + 0.1, True)):
        usage = shutil._ntuple_diskusage(10**9, 0, int(free * 1e6))
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        with nullcontext() if enough else pytest.raises(ValueError, match=f"need {needed:.1f} MB"):
            check_checkpoint_space(tmp_path, model, True)


def test_the_estimate_is_what_checkpoints_take(tmp_path: Path) -> None:
    """Measured on the file of a real run's making: frozen tensors once, two moments, averages."""
    model = nn.ModuleList([nn.Linear(300, 300), nn.Linear(300, 300).requires_grad_(False)])
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning)
    for p in learning:
        p.grad = torch.ones_like(p)
    optimizer.step()
    weights = model.state_dict()
    average = weights | {f"0.{n}": p.detach().clone() for n, p in model[0].named_parameters()}
    state = {"optimizer": optimizer.state_dict()}
    content = Checkpoint(load(Experiment, DEMO), ("a",), weights, average, state)
    save_checkpoint(tmp_path / "last.pt", content)
    expected = sum(t.nbytes for t in weights.values()) + 3 * sum(p.nbytes for p in learning)
    assert (tmp_path / "last.pt").stat().st_size == pytest.approx(expected, rel=0.05)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    content = Checkpoint(load(Experiment, DEMO), ("a",), {"w": torch.zeros(2**18)}, {}, {})
    save_checkpoint(path, content)
    for size in (0, 1000, 2**19):
        with files_end_at(size), pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, content._replace(classes=("b",)))
        assert load_checkpoint(path, Experiment).classes == ("a",)
        assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_what_is_not_finished_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as aside:
        aside.touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_metrics_that_do_not_fit_leave_the_earlier_lines_whole(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, active=True, step=0, validated=True)
    log.write(1, loss=0.5)
    assert log.board is not None
    log.board.flush()  # its thread shall not meet the limit
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with files_end_at(size + 5), pytest.raises(OSError, match="File too large"):
        log.write(2, loss=0.25)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    log.write(2, loss=0.125)
    log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]


@pytest.mark.parametrize("when", ["at first", "later"])
def test_curves_that_cannot_be_written_cost_no_metrics(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    # The curves' writer is a thread of TensorBoard's; nobody can catch what it dies of.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    threads = set(threading.enumerate())
    if when == "at first":
        (tmp_path / "tensorboard").touch()
    log = MetricsLog(tmp_path, active=True, step=0, validated=True)
    if when == "later":
        assert log.board is not None
        log.write(1, loss=1.0)
        log.board.flush()
        (events,) = (tmp_path / "tensorboard").iterdir()
        # Room for lines of metrics, none for more of the curves.
        size = events.stat().st_size + 2000
        (tmp_path / "metrics.jsonl").write_text("")
        with files_end_at(size):
            for step in range(60):
                log.write(step, loss=1.0)
                if log.board is not None:
                    with log._tolerate_write_errors():
                        log.board.flush()
    else:
        for step in range(60):
            log.write(step, loss=1.0)
    log.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=60)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 60
    assert capsys.readouterr().out.count("warning: TensorBoard's curves end here") == 1


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    """The run's second checkpoint really fails; going on gives the run that would have been."""
    out = tmp_path / "full"
    settings = [*data, *QUICK]
    config = load(Experiment, DEMO, [*settings, f"--out={out}"])
    build(replace(config, out=str(tmp_path / "whole")), accelerator).train()
    half = replace(config, training=replace(config.training, stop_epoch=2))
    build(half, accelerator).train()
    before = (out / "last.pt").read_bytes(), (out / "best.pt").read_bytes()
    limit = len(before[0]) // 2
    full = subprocess.run(
        [
            *(sys.executable, "train/e2e.py", "--resume", "--config", str(DEMO)),
            *(*settings, "--out", str(out)),
        ],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    line = full.stderr.splitlines()[-1]
    assert line.startswith(f"error: cannot write into {out}: File too large; last.pt of epoch 2")
    assert line.endswith("go on with --resume")
    assert before == ((out / "last.pt").read_bytes(), (out / "best.pt").read_bytes())
    assert not list(out.glob("*.part"))
    assert [line["epoch"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line][-1] > 2

    build(config, accelerator, resume=True).train()
    assert len(the_same_curve(tmp_path / "whole", out)) > 4


@pytest.mark.slow
def test_the_script_refuses_before_it_trains(data: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file/run"
    done = script("train/e2e.py", "--config", DEMO, *data, *QUICK, "--out", out)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"error: out: cannot write into {out}: Not a directory" in done.stderr
