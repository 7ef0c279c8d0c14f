"""Videos of other frame rates than a detector's training videos are named, with what to set."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from configs.loader import load
from extract.settings.sampling import SamplingConfig
from tests.test_e2e import DEMO, QUICK, build
from train.config import Experiment
from train.data.frame_rates import describe_unlike_rates, join_ranges
from train.data.video_files import probe_item
from train.detector.model import Detector
from train.engine.checkpoint import load_checkpoint

BY_FRAMES = SamplingConfig(window_size=64, snippet_stride=4, scale_factor=2)


def test_the_pace_that_training_had_is_what_to_set() -> None:
    found = describe_unlike_rates({"a": 60.0, "b": 24.5}, (24.0, 24.0), BY_FRAMES)
    assert found is not None and "1 of 2 videos" in found and "a (60)" in found
    assert "--sampling.fps 12 " in found and "b" not in found.split("frames: ")[1].split(".")[0]


@pytest.mark.parametrize(
    ("rates", "trained", "sampling"),
    [
        ((24.0, 25.0), (24.0, 24.0), BY_FRAMES),
        ((60.0,), None, BY_FRAMES),  # of an earlier version
        ((60.0,), (24.0, 60.0), BY_FRAMES),
        ((60.0,), (24.0, 24.0), replace(BY_FRAMES, fps=12.0)),
        ((60.0,), (24.0, 24.0), replace(BY_FRAMES, method="resize")),
    ],
)
def test_nothing_is_said_where_it_does_not_matter(
    rates: tuple[float, ...], trained: tuple[float, float] | None, sampling: SamplingConfig
) -> None:
    videos = {f"{fps}": fps for fps in rates}
    assert describe_unlike_rates(videos, trained, sampling) is None


def test_of_imported_features_only_the_making_can_change() -> None:
    """`backbone.mode imported` refuses `sampling.fps`."""
    found = describe_unlike_rates({"a": 60.0}, (24.0, 24.0), BY_FRAMES, imported=True)
    assert found is not None and "sampling.fps" not in found and "import their features" in found


def test_what_is_made_of_several_detectors_has_seen_the_rates_of_all() -> None:
    assert join_ranges([(24.0, 25.0), None, (12.5, 24.0)]) == (12.5, 25.0)
    assert join_ranges([None, None]) is None


def test_a_checkpoint_keeps_the_training_videos_rates(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    short = ["--training.epochs=1", "--data.validation_subset=null", f"--out={tmp_path}"]
    build(load(Experiment, DEMO, [*data, *QUICK, *short]), accelerator).train()
    rates = [probe_item(path).fps for path in Path(data[1].split("=")[1]).glob("training_*")]
    kept = load_checkpoint(tmp_path / "last.pt", Experiment).frame_rates
    assert kept == pytest.approx((min(rates), max(rates)))
    detector = Detector.from_checkpoint(tmp_path / "last.pt")
    frames = [np.zeros((64, 64, 3), np.uint8)] * 4
    path = next(Path(data[1].split("=")[1]).glob("training_*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.detect(path)
        detector.detect(frames, fps=max(rates))
        with pytest.raises(UserWarning, match=r"the source \(100\)\. Set --sampling\.fps"):
            detector.detect(frames, fps=100)
        with pytest.raises(UserWarning, match="1 of 1 videos have frame rates other than"):
            next(detector.detect_live(frames, fps=2))
        detector.frame_rates = (200.0, 240.0)
        with pytest.raises(UserWarning, match=path.stem):
            detector.detect(path)
    fields = torch.load(tmp_path / "last.pt", weights_only=True)
    del fields["frame_rates"]
    torch.save(fields, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt", Experiment).frame_rates is None
