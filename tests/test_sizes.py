"""Every published size against reference numbers of an independent implementation."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from extract.backbone.backbone import Backbone
from extract.checkpoints.layouts import recognise
from extract.checkpoints.strict import load_state_dict_strict
from extract.checkpoints.tensor_files import TensorFile
from extract.settings.backbone import BackboneConfig, TrunkConfig
from tests.marks import quick_only
from tests.test_backbone import relative

PREFIX = "backbone.model.backbone."


def published(shared: Path, size: str) -> tuple[Backbone, dict[str, Any]]:
    """Return a backbone with the reference's weights, and what is known of it."""
    folder = shared / "golden/sizes"
    if not folder.is_dir():
        pytest.skip("reference numbers of real sizes are not here")
    meta = json.loads((folder / "videomae_meta.json").read_text())[size]
    cfg = meta["cfg"]
    trunk = TrunkConfig(
        cfg["embed_dims"],
        cfg["depth"],
        cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
        patch=cfg["patch_size"],
    )
    backbone = Backbone(BackboneConfig(trunk)).eval()
    shapes = dict(meta["keys"])
    for key in [key for key in shapes if key.startswith("blocks.0.")]:  # it stands for all blocks
        shapes |= {key.replace("0", str(k), 1): shapes[key] for k in range(trunk.depth)}
    assert len(shapes) == meta["n_tensors"]
    shapes.pop("pos_embed")  # the fixed table, which every backbone has
    content = TensorFile({PREFIX + key: drawn(key, shape) for key, shape in shapes.items()}, ())
    (network,) = recognise(content, "golden")
    load_state_dict_strict(
        backbone, {"trunk.positions": backbone.trunk.positions, **network.backbone}, size
    )
    return backbone, meta


def drawn(key: str, shape: list[int]) -> Tensor:
    """A tensor's values, which were not shipped; the recipe came with the reference numbers."""
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return torch.from_numpy(n * np.float32(0.7 / np.sqrt(np.prod(shape[1:]))))
    gain = key.endswith(("weight", "gamma", "scale"))
    return torch.from_numpy((1 + 0.05 * n if gain else 0.05 * n).astype(np.float32))


def span() -> Tensor:
    """The reference's input: 32 frames of 160 px."""
    shape = (1, 3, 32, 160, 160)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def from_reference(shared: Path, size: str) -> Tensor:
    """Return the reference's features [C, 32]: one for every frame."""
    return load_file(shared / "golden/sizes/videomae_features.safetensors")[size]


@torch.inference_mode()
@pytest.mark.parametrize("size", quick_only("sblhg", "s"))  # 24 GB hold all, one after the other
def test_features_and_counts_match_the_reference(shared: Path, size: str) -> None:
    backbone, meta = published(shared, size)
    classifier_norm = 2 * backbone.width  # after where a detector takes its features
    assert sum(p.numel() for p in backbone.parameters()) + classifier_norm == meta["params"]
    features = torch.nn.functional.interpolate(backbone(span()), size=32, mode="linear")
    assert relative(features[0], from_reference(shared, size)) < 1e-4
