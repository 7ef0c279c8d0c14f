"""Checkpoints written beside training: whole, as of the moment, one at a time, failures told."""

import shutil
import threading
import time
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from configs.loader import load
from extract.checkpoints.tensor_files import read_tensors
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.engine import checkpoint_writer
from train.engine.checkpoint import (
    Checkpoint,
    is_checkpoint,
    load_checkpoint,
    make_whole,
    save_checkpoint,
    save_shared,
)
from train.engine.checkpoint_writer import CheckpointWriter


@pytest.fixture
def content() -> Checkpoint[Experiment]:
    """A checkpoint of a trunk of 1 MB that two streams share, and 4 weights that learn."""
    config = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    trunk, head = torch.rand(2**18), torch.zeros(4)
    model = {"a.trunk": trunk, "b.trunk": trunk.view(-1), "head": head}
    training = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}, "epoch": 1}
    return Checkpoint(config, ("x",), model, model | {"head": torch.zeros(4)}, training)


FROZEN = {"a.trunk", "b.trunk"}


def change(content: Checkpoint[Experiment]) -> None:
    content.model["head"] += 1
    content.ema["head"] += 1
    content.training["optimizer"]["state"][0]["exp_avg"] += 1


def test_a_file_holds_the_moment_it_was_asked_for(
    content: Checkpoint[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, told = Event(), list[str]()

    def save_late(path: Path, content: Checkpoint[Any], shared: None) -> None:
        assert may_write.wait(60)
        save_checkpoint(path, content, shared)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save_late)
    writer, path = CheckpointWriter(), tmp_path / "last.pt"
    writer.write(path, content, FROZEN, lambda: told.append("first"))
    change(content)  # as the next steps do
    assert not path.exists() and not told
    may_write.set()
    writer.write(tmp_path / "next.pt", content, FROZEN, lambda: told.append("second"))
    writer.wait()
    assert told == ["first", "second"]
    for name, value in (("last.pt", 0), ("next.pt", 1)):
        found = load_checkpoint(tmp_path / name, Experiment)
        for head in (found.model["head"], found.ema["head"]):
            assert head.tolist() == [value] * 4
        assert found.training["optimizer"]["state"][0]["exp_avg"].tolist() == [value] * 4
        torch.testing.assert_close(found.ema["b.trunk"], content.model["a.trunk"])
    assert path.stat().st_size < 1.5 * 2**20  # the trunk once, of two streams and their averages
    writer.close()


def test_no_thread_stays_when_a_file_is_written(
    content: Checkpoint[Experiment], tmp_path: Path
) -> None:
    """With one that has its own threads of OpenMP, a CPU's steps take up to twice as long."""
    writer = CheckpointWriter()
    writer.write(tmp_path / "last.pt", content, FROZEN, lambda: None)
    writing = [each for each in threading.enumerate() if each.name.startswith("checkpoints")]
    while not (tmp_path / "last.pt").exists():
        time.sleep(0.01)
    for thread in writing:
        thread.join(10)
        assert not thread.is_alive()
    writer.write(tmp_path / "last.pt", content, FROZEN, lambda: None)
    writer.close()
    assert writer.pending is not None and writer.pending.done()


def test_a_file_that_cannot_be_written_is_told_at_the_next_occasion(
    content: Checkpoint[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: Checkpoint[Any], shared: None) -> None:
        raise OSError(28, "No space left on device")

    writer, path = CheckpointWriter(), tmp_path / "last.pt"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "save_checkpoint", fail)
        for occasion in (
            writer.wait,
            writer.raise_failure,
            lambda: writer.write(path, content, FROZEN, lambda: None),
        ):
            writer.write(path, content, FROZEN, lambda: pytest.fail("was not written"))
            assert writer.pending is not None
            assert writer.pending.exception(timeout=60) is not None
            with pytest.raises(OSError, match="No space left on device"):
                occasion()
    writer.raise_failure()  # nothing is wrong any more
    writer.write(path, content, FROZEN, lambda: None)
    writer.close()  # without being asked to wait
    assert load_checkpoint(path, Experiment).classes == ("x",)


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trunk of 1 MB be worth a file of its own."""
    monkeypatch.setattr(checkpoint_writer, "WORTH_SHARING", 2**20)


def write_both(content: Checkpoint[Experiment], folder: Path, writer: CheckpointWriter) -> None:
    for name in ("last.pt", "best.pt"):
        writer.write(folder / name, content, FROZEN, lambda: None)
    writer.wait()


def assert_whole(path: Path, content: Checkpoint[Experiment]) -> None:
    found = load_checkpoint(path, Experiment)
    for part, expected in ((found.model, content.model), (found.ema, content.ema)):
        assert [*part] == [*expected]
        assert all(torch.equal(tensor, part[name]) for name, tensor in expected.items())
    assert found.training.keys() == content.training.keys()
    weights = read_tensors(path)
    assert [*weights.tensors] == [*content.ema] and weights.classes == ("x",)


@pytest.mark.usefixtures("shares")
def test_what_never_changes_is_written_once_while_a_run_goes_on(
    content: Checkpoint[Experiment], tmp_path: Path
) -> None:
    writer = CheckpointWriter()
    write_both(content, tmp_path, writer)
    (shared,) = tmp_path.glob("frozen-*.pt")
    before = shared.stat()
    change(content)
    write_both(content, tmp_path, writer)
    assert [*tmp_path.glob("frozen-*.pt")] == [shared] and shared.stat() == before
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / name).stat().st_size < 2**16
        assert_whole(tmp_path / name, content)
    writer.close()


@pytest.mark.usefixtures("shares")
def test_a_run_that_ended_leaves_files_that_can_be_copied_alone(
    content: Checkpoint[Experiment], tmp_path: Path
) -> None:
    killed = CheckpointWriter()
    write_both(content, tmp_path, killed)
    killed.close()
    others = "notes.pt", "frozen-backbone.pt"  # not ours
    for name in others:
        (tmp_path / name).write_text(name)
    resumed = CheckpointWriter()  # it improves nothing, so best.pt is the killed one's
    resumed.write(tmp_path / "last.pt", content, FROZEN, lambda: None)
    resumed.finish(tmp_path)
    resumed.close()
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "last.pt", *others}
    for name in ("last.pt", "best.pt"):
        elsewhere = tmp_path / "elsewhere" / name
        elsewhere.parent.mkdir(exist_ok=True)
        shutil.move(tmp_path / name, elsewhere)
        assert elsewhere.stat().st_size < 1.5 * 2**20
        assert_whole(elsewhere, content)


def test_a_file_of_another_run_is_left_as_it_is(
    content: Checkpoint[Experiment], tmp_path: Path
) -> None:
    """Copied here without what it shared there, it cannot be made whole, and must end no run."""
    shared = save_shared(tmp_path, content, FROZEN)
    save_checkpoint(tmp_path / "last.pt", content, shared)
    elsewhere = shared._replace(file=f"frozen-{'0' * 16}.pt")
    save_checkpoint(tmp_path / "copied.pt", content, elsewhere)
    before = (tmp_path / "copied.pt").read_bytes()
    make_whole(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied.pt", "last.pt"]
    assert_whole(tmp_path / "last.pt", content)
    assert (tmp_path / "copied.pt").read_bytes() == before


@pytest.mark.usefixtures("shares")
def test_a_file_copied_alone_from_a_run_that_goes_on_says_what_it_lacks(
    content: Checkpoint[Experiment], tmp_path: Path
) -> None:
    writer = CheckpointWriter()
    write_both(content, tmp_path, writer)
    writer.close()
    (shared,) = tmp_path.glob("frozen-*.pt")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "last.pt", alone)
    for read in (lambda path: load_checkpoint(path, Experiment), read_tensors):
        with pytest.raises(ValueError, match=rf"last\.pt is of .*{shared.name}.*copy it") as told:
            read(alone / "last.pt")
        assert "\n" not in str(told.value)
    assert is_checkpoint(alone / "last.pt", Experiment)
    shutil.copy(shared, alone)
    assert_whole(alone / "last.pt", content)
    damaged = bytearray(shared.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (alone / shared.name).write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"{shared.name}, which .*last\.pt needs, is damaged"):
        load_checkpoint(alone / "last.pt", Experiment)


def test_a_small_trunk_is_in_every_file(content: Checkpoint[Experiment], tmp_path: Path) -> None:
    writer = CheckpointWriter()
    write_both(content, tmp_path, writer)
    writer.close()
    assert not [*tmp_path.glob("frozen-*.pt")]
    assert_whole(tmp_path / "last.pt", content)


@pytest.mark.parametrize("failure", [OSError("stale file handle"), MemoryError()])
def test_what_cannot_be_read_now_keeps_the_file_that_it_needs(
    failure: Exception,
    content: Checkpoint[Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = save_shared(tmp_path, content, FROZEN)
    save_checkpoint(tmp_path / "best.pt", content, shared)

    def fail(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(type(failure)):
            make_whole(tmp_path)
    assert (tmp_path / shared.file).is_file()
    make_whole(tmp_path)
    assert not (tmp_path / shared.file).exists()
    assert load_checkpoint(tmp_path / "best.pt", Experiment).model.keys() == content.model.keys()
