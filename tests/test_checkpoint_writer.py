"""Checkpoints written beside training: whole, as of the moment, one at a time, failures told."""

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from configs.loader import load
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.engine import checkpoint_writer
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
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

    def save_late(path: Path, content: Checkpoint[Any]) -> None:
        assert may_write.wait(60)
        save_checkpoint(path, content)

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


def test_a_file_that_cannot_be_written_is_told_at_the_next_occasion(
    content: Checkpoint[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: Checkpoint[Any]) -> None:
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
