"""A session holds what every training run begins with, and lets go of it."""

from pathlib import Path

import pytest
from accelerate import Accelerator

from configs.loader import load
from evaluate.reports.launches import read_launches
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.engine.session import Session

DEMO = REPOSITORY / "configs/e2e/demo/forward.yaml"


def test_a_session_ends_the_use_of_its_store(tmp_path: Path, accelerator: Accelerator) -> None:
    config = load(Experiment, DEMO, [f"--out={tmp_path / 'run'}"])
    with Session(config, resume=False, cache=str(tmp_path / "cache")) as session:
        store = session.store
        assert store is not None and store.lease is not None and not session.begun
    assert store.lease is None


def test_a_run_that_is_there_goes_on_only_if_told(tmp_path: Path, accelerator: Accelerator) -> None:
    config = load(Experiment, DEMO, [f"--out={tmp_path}"])
    (tmp_path / "last.pt").touch()
    with pytest.raises(ValueError, match="--resume"):
        Session(config, resume=False)
    with Session(config, resume=True) as session:
        assert session.begun and session.store is None


def test_a_launch_that_fails_is_recorded(tmp_path: Path, accelerator: Accelerator) -> None:
    config = load(Experiment, DEMO, [f"--out={tmp_path}"])
    with (
        pytest.raises(FloatingPointError),
        Session(config, resume=False) as session,
        session.report() as notes,
    ):
        notes.about = {"classes": 6}
        raise FloatingPointError("the loss became nan")
    (launch,) = read_launches(tmp_path)
    assert "the loss became nan" in launch.outcome and launch.about == {"classes": 6}
