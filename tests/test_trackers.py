"""Curves in TensorBoard, Weights & Biases and MLflow, offline; skipped where those are missing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import PartialState

from evaluate.reports.metrics_file import read_metrics
from tests.conftest import REPOSITORY
from train.config import DetectionTraining
from train.tracking import trackers as module
from train.tracking.metrics_log import MetricsLog
from train.tracking.trackers import RUNS, Trackers, check_trackers

SETTINGS = {"out": "x", "training.lr": 0.1, "cache.blocks": (1, 2), "data.blocked": None}


@pytest.fixture(autouse=True)
def state() -> None:
    """What every run has when its metrics begin, and Accelerate's trackers ask for."""
    PartialState()


def two_launches(folder: Path, *trackers: str) -> None:
    """Write metrics of steps 1 to 4, resume after step 2, and write 3 to 6."""
    for first, last in ((0, 4), (2, 6)):
        log = MetricsLog(folder, True, first, True, trackers, SETTINGS)
        for step in range(first + 1, last + 1):
            log.write(step, loss=1 / step, validation={"mAP@0.5": step / 10})
        log.close()
        # TensorBoard sorts files by name: by their second, then by a count as text, 10 before 9.
        time.sleep(1 - time.time() % 1)


def test_tensorboard_continues_its_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    two_launches(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name, value in (("loss", lambda step: 1 / step), ("validation/mAP@0.5", lambda s: s / 10)):
        curve = events.Scalars(name)
        assert [event.step for event in curve] == [1, 2, 3, 4, 5, 6]
        assert [event.value for event in curve] == pytest.approx([value(s) for s in range(1, 7)])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6 and not (tmp_path / RUNS).exists()


def test_metrics_alone_where_no_tracker_is_wanted(tmp_path: Path) -> None:
    two_launches(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_wandb_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    two_launches(tmp_path, "wandb", "tensorboard")
    run = json.loads((tmp_path / RUNS).read_text())["wandb"]
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert folders and all(folder.name.endswith(f"-{run}") for folder in folders)
    assert wandb.run is None and (tmp_path / "tensorboard").exists()


def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    two_launches(tmp_path, "mlflow")
    run = json.loads((tmp_path / RUNS).read_text())["mlflow"]
    client = mlflow.MlflowClient()
    found = client.get_run(run)
    assert found.data.params["training.lr"] == "0.1" and found.info.status == "FINISHED"
    curve = {point.step: point.value for point in client.get_metric_history(run, "loss")}
    assert curve == pytest.approx({step: 1 / step for step in range(1, 7)})
    assert len(client.get_metric_history(run, "validation/mAP_0.5")) >= 6
    (experiment,) = [e for e in client.search_experiments() if e.name == "palindrome"]
    assert len(client.search_runs([experiment.experiment_id])) == 1


TRACKIO = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from tests.test_trackers import RUNS, two_launches
PartialState()
folder = Path(sys.argv[1])
two_launches(folder, "trackio")
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("palindrome")
assert run == json.loads((folder / RUNS).read_text())["trackio"]
print(json.dumps(SQLiteStorage.get_logs("palindrome", run)))
"""


def test_trackio_continues_its_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    # A process of its own: trackio reads where its data are when it is imported.
    place = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path)],
        env=os.environ | place,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    curve = {point["step"]: point["loss"] for point in json.loads(told)}
    assert curve == pytest.approx({step: 1 / step for step in range(1, 7)})


class Unreliable:
    """A tracker whose server is gone after the first step."""

    def store_init_configuration(self, values: dict[str, object]) -> None:
        assert values["cache.blocks"] == "(1, 2)"

    def log(self, values: dict[str, float], step: int) -> None:
        if step > 1:
            raise ConnectionError("the server\nis gone")


def test_a_tracker_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(self: Trackers, name: str, folder: Path, runs: dict[str, str]) -> Unreliable:
        runs[name] = "id"
        return Unreliable()

    monkeypatch.setattr(Trackers, "_start", start)
    two_launches(tmp_path, "wandb")
    assert capsys.readouterr().out == "warning: curves in wandb end here: the server is gone\n" * 2
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6


def test_one_that_does_not_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("no key")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.__init__", lambda *_, **__: None)
    monkeypatch.setattr("accelerate.tracking.WandBTracker.start", fail)
    with pytest.raises(ValueError, match="wandb does not start: no key; `wandb login`, or WANDB"):
        MetricsLog(tmp_path, True, 0, True, ("wandb",), SETTINGS)


def test_unknown_and_missing_ones_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DetectionTraining().trackers == ("tensorboard",)
    monkeypatch.setitem(module.AVAILABLE, "wandb", lambda: False)
    check_trackers(("tensorboard",))
    with pytest.raises(ValueError, match="wandb not installed: `pip install wandb`"):
        check_trackers(("wandb",))
    command = ["train/e2e.py", "--config", "configs/e2e/demo/forward.yaml", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command, '--training.trackers=["tensorbored"]'],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "training.trackers" in done.stderr.splitlines()[-1]
