"""How exactly float32 is computed, and that every program sets it."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

from configs.loader import load
from extract.activations.fingerprints import describe, fingerprints, settings
from extract.backbone.backbone import Backbone
from extract.backbone.precision import computing_in, set_precision
from extract.backbone.videomae import Block
from extract.settings.backbone import BackboneConfig, Precision, TrunkConfig
from extract.settings.pixels import PixelConfig
from tests.conftest import REPOSITORY
from train.config import Experiment
from train.engine.session import inference_accelerator, make_accelerator

CPU = torch.device("cpu")
SMALL = TrunkConfig(32, 2, 2, image_size=32)
FLAGS: dict[Precision, tuple[str, bool, bool, bool]] = {
    "fp32": ("highest", False, False, False),
    "tf32": ("high", True, True, True),
    "bf16": ("highest", False, False, True),
    "fp16": ("highest", False, False, True),
}


def flags() -> tuple[str, bool, bool, bool]:
    """Return all that decides how float32 is multiplied, and whether convolutions are tried."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    of_matrices = torch.get_float32_matmul_precision(), bool(matmul.allow_tf32)
    return *of_matrices, bool(cudnn.allow_tf32), bool(cudnn.benchmark)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with computing_in("fp32", CPU):
        yield


@pytest.mark.parametrize("precision", FLAGS)
def test_float32_is_whole_unless_tf32_is_asked_for(precision: Precision) -> None:
    for other in FLAGS:
        set_precision(other)
        set_precision(precision)
        assert flags() == FLAGS[precision]
    set_precision("tf32")
    with pytest.raises(KeyError), computing_in(precision, CPU):
        assert flags() == FLAGS[precision]
        raise KeyError
    assert flags() == FLAGS["tf32"]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("make", [make_accelerator, inference_accelerator])
def test_launches_set_it(precision: Precision, make: type) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    set_precision("fp32" if precision == "tf32" else "tf32")
    of_demo = f"--training.precision={precision}"
    config = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml", [of_demo])
    try:
        accelerator = make(config)
        assert flags() == FLAGS[precision]
        assert accelerator.mixed_precision == ("bf16" if precision == "bf16" else "no")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_tf32_has_fingerprints_of_its_own() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(SMALL, mode="frozen")).eval()
    names = {
        precision: fingerprints(backbone, settings(backbone.config, PixelConfig(), precision))
        for precision in FLAGS
    }
    assert len({each["features"] for each in names.values()}) == len(FLAGS)


def test_without_a_gpu_its_settings_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that never set them reads what another has stored."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(SMALL, mode="frozen")).eval()
    of = settings(backbone.config, PixelConfig(), "fp32")
    found = {}
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        for exact in (False, True):
            torch.backends.cudnn.allow_tf32 = not exact
            found[gpu, exact] = describe(backbone, of)["features"]["flags"]
    assert found[False, False] == found[False, True] == found[True, True] != found[True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_path_scales_branches_as_timm_does(dtype: torch.dtype) -> None:
    """The stream stays float32; a branch is scaled in the type that it is computed in."""
    torch.manual_seed(0)
    block, x = Block(SMALL), torch.randn(6, 8, 32)
    torch.nn.init.normal_(block.mlp.fc2.weight, std=0.3)
    scale = torch.tensor([0.0, 1 / 0.9])[torch.randint(2, (6, 2, 1, 1))]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = block(x, scale)
        branch = block.attn(block.norm1(x))
        assert branch.dtype == dtype
        first = x + (branch * scale[:, 0].to(dtype)).float()
        expected = first + (block.mlp(block.norm2(first)) * scale[:, 1].to(dtype)).float()
    assert found.dtype == torch.float32
    # In float32 product and sum are rounded once.
    error = 1e-6 if dtype == torch.float32 else 0.0
    assert torch.allclose(found, expected, rtol=error, atol=error)
