"""Training takes the steps of the published recipe, computed independently in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file

from configs.loader import load
from tests import training_reference as reference
from tests.test_e2e import DEMO
from train.config import Experiment
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.engine.loop import TrainingRun

# A constant that is added to all keys changes no attention: these have no gradient but rounding's,
# which Adam makes as large as any.
WITHOUT_EFFECT = ("attention.key.norm.bias", "attention.key.linear.bias")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return load_file(reference.FILE)


def test_twenty_updates_are_the_references(
    expected: dict[str, np.ndarray], data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    demo = load(Experiment, DEMO, [*data, "--data.validation_subset=null"])
    config = replace(reference.experiment(), data=demo.data, out=str(tmp_path))
    videos = load_items(config.data, load_annotations(config.data), "training")
    detector = Detector(config, reference.CLASSES)
    reference.set_weights(detector)
    task = DetectionTask(detector, videos, None, accelerator)
    run = TrainingRun(task, accelerator, resume=False)
    assert run.updates == reference.PER_EPOCH
    run.wrapped.train()
    for step, line in enumerate(expected["updates"]):
        (done,) = run.update(step, [reference.batch()])
        rates = {group["initial_lr"]: group["lr"] for group in run.optimizer.param_groups}
        found = [*done.losses.tolist(), float(task.normaliser.value)]
        np.testing.assert_allclose(found, line[:3], rtol=1e-5)
        for full in (reference.RATE, reference.ADAPTER_RATE):
            assert rates[full] == pytest.approx(full * line[4], rel=1e-12, abs=0)
    weights = {f"weights.{name}": p for name, p in detector.named_parameters() if p.requires_grad}
    means = {f"mean.{name}": tensor for name, tensor in run.average.tensors.items()}
    assert weights.keys() | means.keys() | {"updates"} == expected.keys()
    for name, tensor in (weights | means).items():
        if name.endswith(WITHOUT_EFFECT):
            continue
        np.testing.assert_allclose(tensor.detach(), expected[name], rtol=0, atol=1e-5, err_msg=name)


def test_the_reference_is_what_its_script_computes(expected: dict[str, np.ndarray]) -> None:
    computed = reference.trajectory()
    assert computed.keys() == expected.keys()
    for name, value in computed.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-9, err_msg=name)
        assert np.abs(value).max() > 0
    assert torch.get_default_dtype() == torch.float32
