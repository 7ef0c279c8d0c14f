"""The demo's promise, at full size: it learns, and what cannot be learned is not."""

import json
from pathlib import Path

import pytest

from tests.test_e2e import DEMO, ONE_PROCESS, script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    done = script("extract/demo.py", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def average_map(dataset: Path, annotations: str, out: Path) -> dict[str, float]:
    """Train as `make demo` does and return the metrics on the true test annotations."""
    settings = [
        f"--data.annotations={dataset / annotations}",
        f"--data.videos={dataset / 'videos'}",
        f"--data.classes={dataset / 'classes.txt'}",
        f"--out={out}",
    ]
    done = script("train/e2e.py", "--config", DEMO, *settings, launcher=ONE_PROCESS, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    done = script(
        *("evaluate/run.py", "--checkpoint", out / "last.pt", "--out", out / "scores"),
        *("--tious", 0.3, 0.4, 0.5, 0.6, 0.7, 0.9),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics: dict[str, float] = json.loads((out / "scores/metrics.json").read_text())
    return metrics


def test_the_demo_learns_and_leaves_room(dataset: Path, tmp_path: Path) -> None:
    metrics = average_map(dataset, "annotations.json", tmp_path / "run")
    average = sum(metrics[f"mAP@{tiou}"] for tiou in (0.3, 0.4, 0.5, 0.6, 0.7)) / 5
    assert 0.60 <= average <= 0.90
    assert metrics["mAP@0.9"] < 0.3 * metrics["mAP@0.3"]


def test_exchanged_annotations_teach_nothing(dataset: Path, tmp_path: Path) -> None:
    metrics = average_map(dataset, "exchanged.json", tmp_path / "run")
    assert metrics["mAP@0.3"] < 0.20 and metrics["average_mAP"] < 0.10
