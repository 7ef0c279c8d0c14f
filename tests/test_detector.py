"""The whole detector: pixels to segments, both directions, checkpoints."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.loader import load
from extract.backbone.backbone import Backbone
from extract.checkpoints.layouts import find_networks
from extract.checkpoints.tensor_files import read_tensors
from extract.sampling.windows import Window, sliding_windows
from extract.settings.backbone import BackboneConfig, TrunkConfig
from extract.settings.sampling import Direction, SamplingConfig
from tests.conftest import GOLDEN, REPOSITORY
from tests.waits import DeviceCopies
from train.config import EvaluationConfig, Experiment
from train.data.batch import Batch
from train.data.items import VideoItem
from train.detector.model import Detector
from train.detector.opentad import checkpoint_from_opentad
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.modeling.actionformer import HeadOutput
from train.modeling.config import HeadConfig
from train.modeling.points import pyramid_points
from train.postprocessing import candidates
from train.postprocessing.candidates import (
    Candidates,
    Predictions,
    merge_windows,
    predict_windows,
    read_candidates,
    strongest,
)

CLASSES = ("a", "b", "c", "d", "e")
TRUNK = "streams.0.backbone.trunk"


def golden_detector() -> Detector:
    sizes = json.loads((GOLDEN / "config.json").read_text())
    trunk = TrunkConfig(sizes["embed"], sizes["depth"], sizes["heads"], image_size=sizes["img"])
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    config = replace(
        demo,
        backbone=BackboneConfig(trunk),
        head=HeadConfig(width=sizes["proj"], heads=4, levels=sizes["levels"]),
        sampling=SamplingConfig(window_size=sizes["window"], snippet_stride=1),
    )
    path = GOLDEN / "opentad_checkpoint.pth"
    network = replace(find_networks(path)[0], classes=CLASSES[: sizes["ncls"]])
    return Detector.restore(checkpoint_from_opentad(network, config, path), path)


@torch.inference_mode()
def test_pixels_to_scores_match_reference() -> None:
    detector = golden_detector()
    golden = load_file(GOLDEN / "activations.safetensors")
    mask, reflection = torch.ones(1, 64, dtype=torch.bool), torch.tensor([63.0])
    (output,) = detector([golden["video"][:1]], mask, reflection)
    scores = output.flat()[0][0].sigmoid()
    expected = golden["full_scores_0"]
    assert float((scores - expected).norm() / expected.norm()) < 1e-5


def test_an_opentad_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    path = GOLDEN / "opentad_checkpoint.pth"
    config = small_experiment(tmp_path)
    said = r"holds a VideoMAE \(64 wide, 2 blocks\); the config has .*set backbone\.trunk\.width 64"
    with pytest.raises(ValueError, match=said):
        checkpoint_from_opentad(find_networks(path)[0], config, path)
    config = replace(config, backbone=golden_detector().config.backbone)
    network = replace(find_networks(path)[0], classes=CLASSES)
    with pytest.raises(ValueError, match=r"opentad_checkpoint\.pth does not fit this model"):
        Detector.restore(checkpoint_from_opentad(network, config, path), path)


def small_experiment(out: Path) -> Experiment:
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    return replace(
        demo,
        out=str(out),
        sampling=SamplingConfig(window_size=32, snippet_stride=2),
        backbone=BackboneConfig(TrunkConfig(32, 2, 2, image_size=32)),
        head=HeadConfig(width=16, heads=2, levels=3),
    )


def item(frames: int = 100) -> VideoItem:
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64), ()
    return VideoItem("clip", Path("clip.mp4"), frames, frames / 10, 10, *nothing)


def select_candidates(output: HeadOutput, config: EvaluationConfig) -> list[Candidates]:
    """Return the candidates of every window of an output."""
    return read_candidates(strongest(output, config), config)


class Echo:
    """A model that predicts one segment per window, at one point, as told."""

    def __init__(self, point: int, before: float, after: float, direction: Direction) -> None:
        self.point, self.distances = point, torch.tensor([before, after])
        self.direction: Direction = direction

    def __call__(self, batch: Batch) -> Predictions:
        windows, steps = batch.mask.shape
        logits = torch.full((windows, 2, steps), -20.0)
        logits[:, 1, self.point] = 3.0
        distances = torch.zeros(windows, 2, steps)
        distances[:, :, self.point] = self.distances
        output = HeadOutput((logits,), (distances,), (batch.mask,))
        return {"it": ((output, self.direction),)}


def blank_batch(video: str, window: Window) -> Batch:
    """Return a batch of one window without pixels and actions."""
    return Batch(
        videos=(video,),
        windows=(window,),
        inputs=(torch.zeros(1, 3, 32, 4, 4, dtype=torch.uint8),),
        mask=torch.from_numpy(window.mask())[None],
        reflection=torch.tensor([window.reflection]),
        segments=((torch.zeros(0, 2),),),
        labels=(torch.zeros(0, dtype=torch.int64),),
    )


@pytest.mark.parametrize("frames", [100, 64, 41])
def test_a_prediction_finds_its_place_in_the_video(tmp_path: Path, frames: int) -> None:
    """Step 10, from 2 before to 3 after, in the last window, in both directions of time."""
    config = small_experiment(tmp_path)
    window = sliding_windows(frames, 0.5, config.sampling)[-1]
    batch = blank_batch("clip", window)
    forward, backward = (
        predict_windows(
            Echo(10, 2.0, 3.0, direction), [batch], config.evaluation, torch.device("cpu")
        )
        for direction in get_args(Direction)
    )
    # The frame that stands at reversed step 10 is the one before the last valid by 10 steps.
    last = window.frames[-1]
    start, end = window.start + 2 * 8, window.start + 2 * 13
    found = merge_windows(forward["it"]["clip"], item(frames), ("x", "y"), config.evaluation)
    assert found[0].label == "y"
    assert found[0].score == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert (found[0].start_s, found[0].end_s) == pytest.approx((start / 10, end / 10))
    found = merge_windows(backward["it"]["clip"], item(frames), ("x", "y"), config.evaluation)
    assert (found[0].start_s, found[0].end_s) == pytest.approx(
        ((last - 2 * 13) / 10, (last - 2 * 8) / 10)
    )


def test_only_valid_and_strong_points_count(tmp_path: Path) -> None:
    config = small_experiment(tmp_path).evaluation
    logits = torch.tensor([[[3.0, -10.0, 2.0, 5.0]]])
    mask = torch.tensor([[True, True, True, False]])
    output = HeadOutput((logits,), (torch.ones(1, 2, 4),), (mask,))
    (found,) = select_candidates(output, config)
    assert np.allclose(found.segments, [[-1, 1], [1, 3]])
    assert np.all(np.diff(found.scores) < 0) and len(found.scores) == 2
    (found,) = select_candidates(output, replace(config, max_per_window=1))
    assert len(found.scores) == 1 and found.labels.dtype == np.int64


def answers(windows: int, levels: tuple[int, ...] = (32, 16)) -> HeadOutput:
    logits = tuple(torch.zeros(windows, 3, points) for points in levels)
    distances = tuple(torch.ones(windows, 2, points) for points in levels)
    masks = tuple(torch.ones(windows, points, dtype=torch.bool) for points in levels)
    return HeadOutput(logits, distances, masks)


def test_candidates_are_chosen_on_the_device(tmp_path: Path) -> None:
    config = small_experiment(tmp_path).evaluation
    pyramid_points.cache_clear()
    with FakeTensorMode(), torch.device("cuda"):
        strongest(answers(2), config)  # the points are made once
        with DeviceCopies() as copies:
            found = strongest(answers(2), config)  # what depends on a number raises
    pyramid_points.cache_clear()
    assert found.device.type == "cuda" and found.shape == (2, 3 * 48, 4)
    assert not copies.seen and not copies.free


def test_the_host_waits_once_a_batch_while_the_next_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not there: what is copied ahead, computed and fetched, and when."""
    config, seen = small_experiment(tmp_path), list[str]()
    windows = sliding_windows(300, 0.5, config.sampling)[:3]

    def model(batch: Batch) -> Predictions:
        seen.append(f"compute {batch.videos[0]}")
        return {name: ((answers(1), "forward"),) for name in ("one", "two", "both")}

    def start_fetch(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        number = sum(line.startswith("fetch") for line in seen)
        seen.append(f"fetch {number}")

        def wait() -> torch.Tensor:
            seen.append(f"wait {number}")
            return tensor

        return wait

    def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
        assert device.type == "cuda"
        for batch in batches:
            seen.append(f"copy {batch.videos[0]}")
            yield batch

    monkeypatch.setattr(candidates, "start_fetch", start_fetch)
    monkeypatch.setattr(candidates, "copied_ahead", copied_ahead)
    monkeypatch.setattr(Batch, "to", lambda self, device: self)
    batches = [blank_batch(str(number), window) for number, window in enumerate(windows)]
    found = predict_windows(model, batches, config.evaluation, torch.device("cuda"))
    assert found.keys() == {"one", "two", "both"} and found["both"].keys() == {"0", "1", "2"}
    each = [[f"copy {n}", f"compute {n}", f"fetch {n}"] for n in range(3)]
    assert seen == [*each[0], *each[1], "wait 0", *each[2], "wait 1", "wait 2"]


def test_segments_stay_within_the_video(tmp_path: Path) -> None:
    config = small_experiment(tmp_path).evaluation
    candidates = Candidates(
        np.array([[-30.0, 50.0], [90.0, 400.0]], np.float32),
        np.array([0.9, 0.8], np.float32),
        np.array([0, 0]),
    )
    found = merge_windows([candidates], item(), ("x",), config)
    assert [(d.start_s, d.end_s) for d in found] == [(0.0, 5.0), (9.0, 10.0)]


def test_the_order_of_windows_changes_nothing(tmp_path: Path) -> None:
    """Loader workers take turns, and scores in half precision are often equal."""
    config = small_experiment(tmp_path).evaluation
    windows = [
        Candidates(
            np.array([[start, start + 40.0]], np.float32),
            np.full(1, 0.5, np.float32),
            np.zeros(1, int),
        )
        for start in (0.0, 10.0, 20.0)
    ]
    found = merge_windows(windows, item(), ("x",), config)
    assert len({d.score for d in found}) == 3
    assert merge_windows(windows[::-1], item(), ("x",), config) == found


def test_checkpoint_brings_back_the_averaged_detector(tmp_path: Path) -> None:
    config = small_experiment(tmp_path)
    trained, averaged = Detector(config, CLASSES), Detector(config, CLASSES)
    path = tmp_path / "last.pt"
    checkpoint = Checkpoint(config, CLASSES, trained.state_dict(), averaged.state_dict(), {})
    save_checkpoint(path, checkpoint)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    loaded = Detector.from_checkpoint(path)
    assert loaded.classes == CLASSES and loaded.config == config and not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, averaged.state_dict()[name])
    assert load_checkpoint(path, Experiment).classes == CLASSES


def test_bad_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "absent.pt", Experiment)
    config = small_experiment(tmp_path)
    state = Detector(config, CLASSES).state_dict()
    save_checkpoint(tmp_path / "good.pt", Checkpoint(config, CLASSES, state, state, {}))
    (tmp_path / "noise.pt").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=r"noise\.pt is damaged"):
        load_checkpoint(tmp_path / "noise.pt", Experiment)
    content = bytearray((tmp_path / "good.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.pt is damaged"):
        load_checkpoint(tmp_path / "flipped.pt", Experiment)
    torch.save({"format": "palindrome-2", "config": 3}, tmp_path / "version.pt")
    with pytest.raises(ValueError, match="of another version"):
        load_checkpoint(tmp_path / "version.pt", Experiment)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "other.pt", Experiment)


def test_pretrained_trunk_is_loaded_from_the_config(tmp_path: Path) -> None:
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    path = REPOSITORY / demo.backbone.weights  # type: ignore[operator]
    assert path.stat().st_size < 4_000_000
    config = replace(demo, backbone=replace(demo.backbone, weights=str(path)))
    detector = Detector(config, CLASSES)
    detector.load_pretrained()
    stored = read_tensors(path).tensors["trunk.patch_embed.weight"].float()
    assert torch.equal(detector.get_parameter(f"{TRUNK}.patch_embed.weight"), stored)


def test_trunk_can_be_shared_by_two_directions() -> None:
    """Two directions need one frozen trunk in memory."""
    config = BackboneConfig(TrunkConfig(32, 2, 2, image_size=32))
    one = Backbone(config).eval()
    two = Backbone(config, one.trunk).eval()
    frames = torch.zeros(1, 3, 16, 32, 32, dtype=torch.uint8)
    assert torch.equal(one(frames), two(frames))


def test_mmaction_checkpoints_load_into_the_trunk(tmp_path: Path) -> None:
    """The layout of mmaction2's VideoMAE files: `backbone.…`, a norm and a classifier after it."""
    prefix = "module.backbone.model."
    content = torch.load(GOLDEN / "opentad_checkpoint.pth", weights_only=True)["state_dict"]
    published = {
        key.removeprefix(prefix): value
        for key, value in content.items()
        if key.startswith(prefix) and ".adapter." not in key
    }
    published |= {
        "cls_head.fc_cls.weight": torch.zeros(400, 64),
        "cls_head.fc_cls.bias": torch.ones(400),
    }
    torch.save({"state_dict": published, "meta": {}}, tmp_path / "vit.pth")
    expected = golden_detector().get_submodule(TRUNK).state_dict()
    config = golden_detector().config
    with_file = replace(config.backbone, weights=str(tmp_path / "vit.pth"))
    detector = Detector(replace(config, backbone=with_file), CLASSES)
    detector.load_pretrained()
    for name, tensor in detector.get_submodule(TRUNK).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    del published["backbone.blocks.1.norm1.weight"]
    torch.save({"state_dict": published}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"missing +blocks\.1\.norm1\.weight"):
        detector.load_pretrained()
