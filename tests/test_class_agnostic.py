"""Detectors of actions whichever they are, their classes from scores of whole videos."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configs.loader import dump, load
from evaluate.annotations import Detection, read_annotations
from evaluate.files.predictions import read_predictions
from evaluate.files.video_scores import assign_classes, read_video_scores
from tests.forks import good, script
from tests.test_e2e import DEMO, QUICK
from train.config import Experiment
from train.detector.detection import detect_subset
from train.modeling.actionformer import ActionFormer, HeadOutput
from train.modeling.config import HeadConfig
from train.modeling.losses import detection_losses, sigmoid_focal_loss
from train.modeling.points import Targets

AGNOSTIC = (
    "--data.class_agnostic=true",
    "--evaluation.nms.multiclass=false",
    "--evaluation.nms.voting_threshold=0.9",
    "--evaluation.nms.max_segments=100",
    "--training.label_smoothing=0.1",
    "--training.boundary_weight=2",
    "--training.positives=200",
    "--head.positions=true",
    "--sampling.method=resize",
    "--sampling.scale_factor=2",
)


def test_detections_get_their_videos_best_classes() -> None:
    scores = {"v": [("a", 0.5), ("b", 0.25), ("c", 0.1)]}
    found = [Detection("action", 0, 1, 0.8), Detection("action", 2, 3, 0.5)]
    assert assign_classes(found, "v", scores, 2) == [
        Detection("a", 0, 1, 0.4),
        Detection("a", 2, 3, 0.25),
        Detection("b", 0, 1, 0.2),
        Detection("b", 2, 3, 0.125),
    ]
    assert len(assign_classes(found, "v", scores, 9)) == 6


@pytest.mark.parametrize("scored", [["v"], []])
def test_a_video_without_scores_is_told_before_anything_is_detected(
    tmp_path: Path, scored: list[str]
) -> None:
    file = tmp_path / "scores.json"
    rows = {name: [{"label": "a", "score": 0.1}] for name in scored}
    file.write_text(json.dumps({"results": rows}))
    evaluation = SimpleNamespace(video_scores=str(file), video_classes=1)
    detector: Any = SimpleNamespace(config=SimpleNamespace(evaluation=evaluation))
    items: Any = [SimpleNamespace(name="v"), SimpleNamespace(name="w")]
    nothing: Any = None
    accelerator: Any = SimpleNamespace(process_index=0, num_processes=1)
    with pytest.raises(ValueError, match=f"no video '[vw]' among its {len(scored)}"):
        detect_subset(detector, items, nothing, accelerator, "detecting")


def test_both_layouts_of_scores_are_the_same(tmp_path: Path) -> None:
    lists = {"results": {"v": [{"label": "a", "score": 0.1}, {"label": "b", "score": 0.7}]}}
    rows = {"class": ["a", "b"], "results": {"v": [0.1, 0.7]}}
    for content in (lists, rows):
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert read_video_scores(tmp_path / "x.json") == {"v": [("b", 0.7), ("a", 0.1)]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "'results' is missing"),
        ({"results": {"v": 3}}, "video 'v': expected a list, not 3"),
        ({"results": {"v": [{"label": "a"}]}}, "video 'v': score must be a finite number"),
        ({"class": ["a"], "results": {"v": [1, 2]}}, "2 scores, but 1 names under 'class'"),
        ({"class": ["a"], "results": {"v": ["x"]}}, "a must be a finite number"),
    ],
)
def test_malformed_scores_are_told(tmp_path: Path, content: Any, said: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        read_video_scores(tmp_path / "x.json")


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.floats() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["results", "class", "label", "score", "v"]), x)
        ),
    )
)
def test_any_json_gives_scores_or_a_message(tmp_path_factory: Any, content: Any) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.json"
    path.write_text(json.dumps(content))
    try:
        read_video_scores(path)
    except ValueError as error:
        assert path.name in str(error)


def test_smoothed_targets_and_weighted_boundaries() -> None:
    """Targets t become t (1 − s) + s / (K + 1); the boundaries' loss is multiplied."""
    torch.manual_seed(0)
    output = HeadOutput(
        (torch.randn(2, 3, 8),), (torch.rand(2, 2, 8),), (torch.ones(2, 8, dtype=torch.bool),)
    )
    classes = torch.zeros(2, 8, 3)
    classes[0, 2, 1] = classes[1, 5, 0] = 1
    targets = Targets(classes=classes, distances=torch.rand(2, 8, 2))
    plain = detection_losses(output, targets)
    smooth = detection_losses(output, targets, 0.1, 2.0)
    logits = output.flat()[0]
    expected = sigmoid_focal_loss(logits, classes * 0.9 + 0.1 / 4).sum()
    assert torch.allclose(smooth.classification, expected)
    assert torch.allclose(smooth.regression, 2 * plain.regression)
    assert torch.equal(detection_losses(output, targets, 0.0, 1.0)[0], plain[0])


def test_positions_are_the_published_ones() -> None:
    """sin and cos of t / 10000^(2i / C), divided by sqrt(C), where the video is."""
    torch.manual_seed(0)
    config = HeadConfig(width=8, heads=2, levels=2, stem_blocks=0, drop_path=0.0)
    head = ActionFormer(4, 1, replace(config, positions=True)).eval()
    features, mask = torch.randn(1, 4, 6), torch.arange(6)[None] < 4
    given = []
    head.norms[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    head(features, mask)
    head.positions = False
    head(features, mask)
    table = torch.tensor(
        [
            [
                (math.cos if c % 2 else math.sin)(t / 10000 ** (2 * (c // 2) / 8)) / math.sqrt(8)
                for c in range(8)
            ]
            for t in range(6)
        ]
    )
    assert torch.allclose(given[0] - given[1], table * mask[0, :, None], atol=1e-6)


class Devices(TorchDispatchMode):
    """Notes where the results of operations stand."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


def test_positions_are_made_where_the_features_are() -> None:
    """A table from the CPU would make the device wait for its copy in every step."""
    with torch.device("meta"):
        head = ActionFormer(4, 1, HeadConfig(width=8, heads=2, levels=2, positions=True))
        features, mask = torch.randn(1, 4, 6), torch.ones(1, 6, dtype=torch.bool)
    with Devices() as devices:
        head(features, mask)
    assert devices.seen == {"meta"}


@pytest.mark.slow
def test_an_experiment_without_classes_end_to_end(data: list[str], tmp_path: Path) -> None:
    """As on ActivityNet: whole videos resized, and classes from elsewhere, here from the truth."""
    config = load(Experiment, DEMO, [*data, *QUICK, *AGNOSTIC, f"--out={tmp_path / 'run'}"])
    (tmp_path / "x.yaml").write_text(dump(config))
    told = good("train/e2e.py", "--config", tmp_path / "x.yaml")
    assert "1 classes" in told
    last = tmp_path / "run/last.pt"
    good("evaluate/run.py", "--checkpoint", last, "--out", tmp_path / "proposals")
    metrics = json.loads((tmp_path / "proposals/metrics.json").read_text())
    assert metrics["average_mAP"] >= 0
    found = read_predictions(tmp_path / "proposals/predictions.json")
    assert {d.label for many in found.values() for d in many} == {"action"}
    truth = read_annotations(Path(config.data.annotations)).videos
    rows = {
        name: [float(any(s.label == c for s in video.segments)) for c in ("Grow", "TurnRight")]
        for name, video in truth.items()
    }
    content = {"class": ["Grow", "TurnRight"], "results": rows}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    scores = f"--evaluation.video_scores={tmp_path / 'scores.json'}"
    good("evaluate/run.py", "--checkpoint", last, "--out", tmp_path / "classes", scores)
    labelled = read_predictions(tmp_path / "classes/predictions.json")
    for name, many in labelled.items():
        assert len(many) == 2 * len(found[name])
        assert {d.label for d in many} == {"Grow", "TurnRight"}
    content["class"] = ["grow", "turn right"]
    (tmp_path / "scores.json").write_text(json.dumps(content))
    done = script("evaluate/run.py", "--checkpoint", last, "--out", tmp_path / "no", scores)
    assert done.returncode == 1 and "has classes grow, turn right, but the annot" in done.stderr


def test_scores_of_videos_need_detections_without_classes(data: list[str]) -> None:
    with pytest.raises(ValueError, match=r"set data\.class_agnostic true"):
        load(Experiment, DEMO, [*data, "--evaluation.video_scores=x.json"])
