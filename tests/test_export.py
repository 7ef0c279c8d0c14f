"""Detectors and recognisers as ONNX and for torch.export: without this code they give the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.loader import load
from evaluate.metrics.accuracy import LabelSet
from extract.sampling.windows import evaluation_windows
from extract.settings.sampling import SamplingConfig
from tests.conftest import REPOSITORY
from train import export
from train.config import Experiment
from train.detector import Detector
from train.engine.checkpoint import Checkpoint, save_checkpoint
from train.export import (
    NEEDED,
    ViewRecogniser,
    WindowDetector,
    export_onnx,
    export_torch,
    full_reflection,
)
from train.recognition.config import Recognition
from train.recognition.recogniser import Recogniser

DEMO = "configs/e2e/demo/forward.yaml"
CLASSES = ("a", "b", "c")
FUSIONS = {
    "one stream": [],
    "average": ["--fusion.method=average"],
    "segments": ["--fusion.method=segments"],
    "two forward": ["--fusion.method=average", "--fusion.partner=forward"],
    "attention": ["--fusion.method=attention"],
}
NETWORKS = {
    "tada2d": [],
    "resnet": ["--network.name=resnet"],
    "tada_convnextv2": ["--network.name=tada_convnextv2", "--network.dropout=0"],
}
VERBS_AND_NOUNS = (LabelSet("verb", ("take", "put")), LabelSet("noun", ("pan", "lid", "cup")))
RUN = """
import sys, torch
program, inputs, out = sys.argv[1:]
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "extract")]
with torch.no_grad():
    found = torch.export.load(program).module()(*torch.load(inputs))
torch.save(list(found), out)
"""


def a_detector(*settings: str) -> Detector:
    """A detector of the demo's size, whose features matter to what it finds."""
    torch.manual_seed(0)
    small = ["--sampling.window_size=64", "--pixels.size=32"]
    config = load(Experiment, REPOSITORY / DEMO, [*small, *settings])
    detector = Detector(config, CLASSES)
    detector.load_pretrained()
    for name, weight in detector.named_parameters():
        if weight.requires_grad and weight.dim() < 2:
            nn.init.normal_(weight, std=0.3)
        if name.endswith("distance_out.bias"):
            nn.init.ones_(weight)  # else they may all be zero
    return detector.eval()


@torch.no_grad()
def answers(detector: Detector, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what the detector itself predicts, in the order of an exported one's outputs."""
    frames, mask = inputs[: len(detector.streams)], inputs[len(detector.streams)]
    turned = inputs[-1] if len(set(detector.config.directions)) > 1 else torch.zeros(len(mask))
    found = detector.predict(detector.features(frames, None), mask, turned)
    return [
        tensor
        for output, _ in found[detector.main_output]
        for logits, distances in zip(output.logits, output.distances, strict=True)
        for tensor in (1 / (1 + (-logits).exp()), distances)
    ]


def check(detector: Detector, found: list[Tensor], wanted: list[Tensor]) -> None:
    network = WindowDetector(detector)
    assert len(found) == len(wanted) == len(network.outputs)
    for ours, theirs in zip(wanted, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    for of_kind in (wanted[::2], wanted[1::2]):  # a scale below 0 makes a level's distances all 0
        assert max(float(tensor.std()) for tensor in of_kind) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "average"])
def test_torch_runs_it_without_our_code(name: str, tmp_path: Path) -> None:
    detector = a_detector(*FUSIONS[name])
    detector.save_pretrained(tmp_path / "made")
    told = export_torch(tmp_path / "made", tmp_path / "made.pt2")
    assert "differs from PyTorch by at most" in told and "frames_reversed uint8 [1, 3" in told
    inputs = WindowDetector(detector).example(seed=7)
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(tmp_path / name) for name in ("made.pt2", "inputs.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", RUN, *files], cwd=tmp_path, check=True, timeout=200)
    check(detector, torch.load(tmp_path / "found.pt"), answers(detector, inputs))


@pytest.mark.parametrize("name", ["one stream", pytest.param("average", marks=pytest.mark.slow)])
def test_onnx_runtime_runs_it(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    for package in NEEDED:
        pytest.importorskip(package)
    detector = a_detector(*FUSIONS[name])
    detector.save_pretrained(tmp_path / "made")
    told = export_onnx(tmp_path / "made", tmp_path / "made.onnx")
    assert "with ONNX Runtime" in told and "MB" in told
    session = runtime.InferenceSession(str(tmp_path / "made.onnx"))
    network = WindowDetector(detector)
    assert [each.name for each in session.get_inputs()] == network.inputs
    inputs = network.example(seed=7)
    given = {name: x.numpy() for name, x in zip(network.inputs, inputs, strict=True)}
    found = session.run(network.outputs, given)
    check(detector, [torch.from_numpy(x) for x in found], answers(detector, inputs))
    assert not list(tmp_path.glob("*.part"))


def save_recogniser(path: Path, *settings: str) -> Recogniser:
    """A small recogniser of two label sets, all of which matters; saved as a checkpoint."""
    torch.manual_seed(0)
    small = ["--network.width=8", "--views.frames=6", "--crops.test_size=40"]
    sides = ["--crops.train_size=32", "--crops.train_short_side=[32, 40]"]
    sets = [*small, *sides, "--crops.test_short_side=48", "--data.classes=[verbs, nouns]"]
    config = load(Recognition, REPOSITORY / "configs/recognition/demo.yaml", [*sets, *settings])
    recogniser = Recogniser(config, VERBS_AND_NOUNS)
    for weight in recogniser.network.parameters():
        if weight.dim() < 2:
            nn.init.normal_(weight, std=0.3)
    state = recogniser.network.state_dict()
    save_checkpoint(path, Checkpoint(config, recogniser.classes, state, state, {}))
    recogniser.network.eval()
    return recogniser


@torch.no_grad()
def check_recogniser(recogniser: Recogniser, views: Tensor, found: list[Tensor]) -> None:
    logits = recogniser.network(views)
    wanted = [logits[:, :2].softmax(1), logits[:, 2:].softmax(1)]
    assert len(found) == 2
    for ours, theirs in zip(wanted, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
        assert float(ours.std()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    NETWORKS,
)
def test_torch_runs_a_recogniser_without_our_code(name: str, tmp_path: Path) -> None:
    recogniser = save_recogniser(tmp_path / "made.pt", *NETWORKS[name])
    told = export_torch(tmp_path / "made.pt", tmp_path / "new/made.pt2")
    assert "frames uint8 [1, 3, 6, 40, 40]" in told and "outputs: scores_verb, scores_noun" in told
    inputs = ViewRecogniser(recogniser).example(seed=7)
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [str(tmp_path / name) for name in ("new/made.pt2", "inputs.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", RUN, *files], cwd=tmp_path, check=True, timeout=200)
    check_recogniser(recogniser, inputs[0], torch.load(tmp_path / "found.pt"))


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_runs_a_recogniser(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    for package in NEEDED:
        pytest.importorskip(package)
    recogniser = save_recogniser(tmp_path / "made.pt", *NETWORKS[name])
    assert "with ONNX Runtime" in export_onnx(tmp_path / "made.pt", tmp_path / "made.onnx")
    session = runtime.InferenceSession(str(tmp_path / "made.onnx"))
    (views,) = ViewRecogniser(recogniser).example(seed=7)
    found = session.run(["scores_verb", "scores_noun"], {"frames": views.numpy()})
    check_recogniser(recogniser, views, [torch.from_numpy(x) for x in found])


@pytest.mark.parametrize("name", FUSIONS)
def test_names_say_what_goes_in_and_comes_out(name: str) -> None:
    detector = a_detector(*FUSIONS[name])
    network = WindowDetector(detector)
    inputs = network.example()
    assert len(inputs) == len(network.inputs) == len(set(network.inputs))
    with torch.no_grad():
        found = list(network(*inputs))
    assert len(set(network.outputs)) == len(found)
    check(detector, found, answers(detector, inputs))
    for output, tensor in zip(network.outputs, found, strict=True):
        what, level = output.split("_")[:2]
        channels = {"scores": len(CLASSES), "distances": 2}[what]
        assert tensor.shape == (1, channels, 64 // 2 ** int(level))
        assert what == "distances" or (tensor.min() >= 0 and tensor.max() <= 1)


@pytest.mark.parametrize(("scale", "stride"), [(1, 2), (2, 4), (4, 4)])
def test_a_full_window_is_turned_as_the_data_turn_it(scale: int, stride: int) -> None:
    sampling = SamplingConfig(window_size=64, scale_factor=scale, snippet_stride=stride)
    (window,) = evaluation_windows(64 * stride, 0.0, sampling)
    assert full_reflection(64 * scale, scale) == pytest.approx(window.reflection)


def test_other_results_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = a_detector()
    wrong = [x.numpy() + 2e-4 for x in answers(detector, WindowDetector(detector).example(seed=1))]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="does not give PyTorch's results"):
        export._compare(WindowDetector(detector), tmp_path / "file", lambda _: wrong, "it")
    nan = [np.full_like(x, np.nan) for x in wrong]
    with pytest.raises(ValueError, match="differ by nan"):
        export._compare(WindowDetector(detector), tmp_path / "file", lambda _: nan, "it")


def test_wrong_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--onnx: out.pt must end in .onnx"):
        export_onnx(tmp_path, Path("out.pt"))
    with pytest.raises(ValueError, match=r"--torch-export: out.onnx must end in .pt2"):
        export_torch(tmp_path, Path("out.onnx"))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`pip install onnx onnxscript onnxruntime`"):
        export_onnx(tmp_path, Path("out.onnx"))
