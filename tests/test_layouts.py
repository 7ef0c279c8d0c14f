"""Every published layout through a real file: recognised, renamed, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from extract.backbone.pretrained import check_trunk_size, load_trunk, trunk_settings
from extract.backbone.videomae import VideoMAE
from extract.checkpoints.key_maps import head_to_opentad
from extract.checkpoints.layouts import find_networks, recognise
from extract.checkpoints.tensor_files import TensorFile
from extract.settings.backbone import TrunkConfig
from tests.layouts import (
    SMALL,
    hugging_face,
    mmaction,
    opentad,
    pretraining,
    random_backbone,
    videomae,
)
from train.modeling.actionformer import ActionFormer
from train.modeling.config import HeadConfig

LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "mmaction2 VideoMAE": mmaction,
    "VideoMAE": videomae,
    "VideoMAE pretraining": pretraining,
    "Hugging Face VideoMAE": hugging_face,
}


def save_zip(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": tensors, "meta": {"epoch": 3}}, path)


def save_legacy(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save({"module": tensors, "epoch": 1}, path, _use_new_zipfile_serialization=False)


def save_bare(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


def save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def save_folder(tensors: dict[str, Tensor], path: Path) -> None:
    path.mkdir()
    save_safetensors(tensors, path / "model.safetensors")


def save_shards(tensors: dict[str, Tensor], path: Path) -> None:
    path.mkdir()
    places: dict[str, str] = {}
    for number in range(2):
        names = list(tensors)[number::2]
        save_safetensors(
            {name: tensors[name] for name in names}, path / f"part{number}.safetensors"
        )
        places |= dict.fromkeys(names, f"part{number}.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": places})
    (path / "model.safetensors.index.json").write_text(index)


def save_old_folder(tensors: dict[str, Tensor], path: Path) -> None:
    path.mkdir()
    torch.save(tensors, path / "pytorch_model.bin")


SAVERS = (save_zip, save_legacy, save_bare, save_safetensors, save_folder, save_shards)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("save", [*SAVERS, save_old_folder])
def test_every_layout_in_every_kind_of_file(
    tmp_path: Path, layout: str, save: Callable[[dict[str, Tensor], Path], None]
) -> None:
    expected = random_backbone().trunk.state_dict()
    save(LAYOUTS[layout](expected), tmp_path / "a name that says nothing")
    trunk = VideoMAE(SMALL)
    coverage = load_trunk(trunk, tmp_path / "a name that says nothing")
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert coverage.layout == layout and coverage.size == "a VideoMAE (32 wide, 3 blocks)"
    assert set(coverage.loaded) | set(coverage.computed) == expected.keys()
    assert set(coverage.computed) == ({"positions"} if layout != "mmaction2 VideoMAE" else set())
    assert len(coverage.loaded) == 3 * 13 + 2 + (layout == "mmaction2 VideoMAE")


@pytest.mark.parametrize("prefix", ["", "videomae."])
def test_hugging_face_names_of_all_versions(prefix: str) -> None:
    """Version 5 of the library calls the biases otherwise, and some of it wrote one for keys."""
    expected = random_backbone().trunk.state_dict()
    old = hugging_face(expected, prefix)
    new = {
        n.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): t for n, t in old.items()
    }
    surplus = {n.replace("query", "key"): t for n, t in new.items() if n.endswith("query.bias")}
    for tensors in (old, new, new | surplus):
        trunk = recognise(TensorFile(tensors, ()), "it")[0].trunk
        assert trunk.keys() | {"positions"} == expected.keys()
        assert all(torch.equal(trunk[name], expected[name]) for name in trunk)
    (network,) = recognise(TensorFile(new | surplus, ()), "it")
    assert len(surplus) == 3 and {n for n in network.dropped if "key" in n} == surplus.keys()
    assert all("no effect" in network.why[name] for name in surplus)


def test_what_is_dropped_has_a_reason() -> None:
    trunk = random_backbone().trunk.state_dict()
    (network,) = recognise(TensorFile(mmaction(trunk), ()), "it")
    assert network.outputs == 400 and not network.head
    assert {name: why.split(";")[0] for name, why in network.why.items()} == {
        "backbone.fc_norm.weight": "the classifier's norm",
        "backbone.fc_norm.bias": "the classifier's norm",
        "cls_head.fc_cls.weight": "the classifier of 400 classes, as Kinetics-400 has",
        "cls_head.fc_cls.bias": "the classifier of 400 classes, as Kinetics-400 has",
    }
    (network,) = recognise(TensorFile(pretraining(trunk), ()), "it")
    assert network.outputs is None
    assert sum(why == "the decoder of the pretraining" for why in network.why.values()) == 5
    # Nothing of a decoder gets into the transformer, though it has blocks of its own.
    assert len(network.backbone) == 3 * 13 + 2


def test_unknown_tensors_are_not_overlooked(tmp_path: Path) -> None:
    tensors = videomae(random_backbone().trunk.state_dict())
    for strange in ("blocks.0.gamma_1", "temporal_embed"):
        torch.save(tensors | {strange: torch.ones(32)}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=f"unexpected {strange}"):
            load_trunk(VideoMAE(SMALL), tmp_path / "x.pth")
    del tensors["blocks.1.attn.v_bias"]
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"missing +blocks\.1\.attn\.v_bias"):
        load_trunk(VideoMAE(SMALL), tmp_path / "x.pth")


def test_the_published_small_file_has_163_tensors() -> None:
    """`vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_*.pth` is a file of 87 MB."""
    with torch.device("meta"):
        shapes = {
            **{"norm1.weight": 384, "norm1.bias": 384, "norm2.weight": 384, "norm2.bias": 384},
            **{"attn.q_bias": 384, "attn.v_bias": 384, "attn.proj.bias": 384},
            **{"mlp.fc1.bias": 1536, "mlp.fc2.bias": 384},
        }
        matrices = {
            **{"attn.qkv.weight": (1152, 384), "attn.proj.weight": (384, 384)},
            **{"mlp.fc1.weight": (1536, 384), "mlp.fc2.weight": (384, 1536)},
        }
        trunk = {"positions": torch.empty(1, 1568, 384), "patch_embed.bias": torch.empty(384)}
        trunk["patch_embed.weight"] = torch.empty(384, 1536)
        for k in range(12):
            trunk |= {f"blocks.{k}.{name}": torch.empty(size) for name, size in shapes.items()}
            trunk |= {f"blocks.{k}.{name}": torch.empty(size) for name, size in matrices.items()}
        published = mmaction(trunk)
        assert len(published) == 163
        assert 86.3 < sum(t.numel() * 4 for t in published.values()) / 2**20 < 87
        (network,) = recognise(TensorFile(published, ()), "it")
    assert str(network.size) == "VideoMAE-S (384 wide, 12 blocks)"
    assert len(network.trunk) + len(network.dropped) == 163 and len(network.dropped) == 4
    wanted = TrunkConfig(width=384, depth=12, heads=6)
    check_trunk_size(network, wanted, "it")
    assert trunk_settings(network, "it") == {
        **{"width": 384, "depth": 12, "heads": 6, "mlp_ratio": 4, "patch": 16, "image_size": 224}
    }


def test_the_giant_size_is_recognised_without_its_memory() -> None:
    """VideoMAEv2-g: patches of 14 pixels, an MLP of 48/11 the width, 710 classes."""
    with torch.device("meta"):
        tensors = {"patch_embed.proj.weight": torch.empty(1408, 3, 2, 14, 14)}
        tensors |= {
            "patch_embed.proj.bias": torch.empty(1408),
            "head.weight": torch.empty(710, 1408),
        }
        for k in range(40):
            tensors[f"blocks.{k}.mlp.fc1.weight"] = torch.empty(6144, 1408)
    (network,) = recognise(TensorFile(tensors, ()), "it")
    assert str(network.size) == "VideoMAE-g (1408 wide, 40 blocks)" and network.outputs == 710
    check_trunk_size(network, TrunkConfig(1408, 40, 16, mlp_ratio=48 / 11, patch=14), "it")
    # As a YAML file may round it; it makes 6144 channels all the same.
    check_trunk_size(network, TrunkConfig(1408, 40, 16, mlp_ratio=4.3637, patch=14), "it")
    with pytest.raises(ValueError, match=r"set backbone\.trunk\.mlp_ratio 4\.36364, backbone\.tr"):
        check_trunk_size(network, TrunkConfig(1408, 40, 16), "it")


def detector_tensors(side: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A backbone and a head in our names; a ladder beside the last two of three blocks."""
    backbone = dict(random_backbone().state_dict())
    if side:
        backbone = {
            (f"ladder.{name}" if name.startswith("adapters.") else name): tensor
            for name, tensor in backbone.items()
            if not name.startswith("adapters.0.")
        }
    head = ActionFormer(32, 20, HeadConfig(width=16, heads=2, levels=3))
    for parameter in head.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    return backbone, head.state_dict()


@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("part", ["state_dict", "state_dict_ema"])
def test_opentad_detectors(tmp_path: Path, part: str, side: bool) -> None:
    """Also as they are published: with the averaged weights alone."""
    backbone, head = detector_tensors(side)
    content: dict[str, Any] = {part: opentad(backbone, head_to_opentad(head)), "epoch": 59}
    if part == "state_dict_ema":
        content["meta"] = {}
    torch.save(content, tmp_path / "epoch_59_cba1017a.pth")
    (network,) = find_networks(tmp_path / "epoch_59_cba1017a.pth")
    assert network.layout == "OpenTAD detector" and network.outputs == 20
    assert network.mode == ("side" if side else "adapter")
    assert network.adapted == ((1, 2) if side else (0, 1, 2))
    for found, wanted in ((network.backbone, backbone), (network.head, head)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(network.dropped) == (1 if side else 3)


def test_averaged_weights_go_before_the_others(tmp_path: Path) -> None:
    first, second = (random_backbone(seed=seed).trunk.state_dict() for seed in (0, 1))
    content = {"state_dict": mmaction(first), "state_dict_ema": mmaction(second)}
    torch.save(content, tmp_path / "both.pth")
    (network,) = find_networks(tmp_path / "both.pth")
    assert torch.equal(network.trunk["patch_embed.bias"], second["patch_embed.bias"])


def test_adapters_in_the_last_blocks_only(tmp_path: Path) -> None:
    backbone, head = detector_tensors()
    backbone = {
        n: t for n, t in backbone.items() if not n.startswith(("adapters.0.", "adapters.1."))
    }
    torch.save(opentad(backbone, head_to_opentad(head)), tmp_path / "g.pth")
    (network,) = find_networks(tmp_path / "g.pth")
    assert network.adapted == (2,) and network.backbone.keys() == backbone.keys()


def test_other_networks_are_refused(tmp_path: Path) -> None:
    trunk = videomae(random_backbone().trunk.state_dict())
    image = trunk | {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)}
    with pytest.raises(ValueError, match=r"its patches are \(3, 16, 16\), not \(3, 2, p, p\)"):
        recognise(TensorFile(image, ()), "vit.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth holds no video transformer.*conv1\.weight"):
        recognise(TensorFile({"conv1.weight": torch.zeros(2)}, ()), "resnet.pth")
    for setting, value in (("num_frames", 32), ("hidden_act", "relu")):
        content = TensorFile(
            hugging_face(random_backbone().trunk.state_dict()), (), settings={setting: value}
        )
        with pytest.raises(ValueError, match=f"its config has {setting} {value}; ours is"):
            recognise(content, "folder")


@pytest.mark.parametrize("width, depth, prefixed", [(32, 2, True), (48, 3, False)])
@torch.inference_mode()
def test_a_model_of_the_transformers_library_computes_the_same(
    tmp_path: Path, width: int, depth: int, prefixed: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=2 * width,
        use_mean_pooling=True,
        decoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    torch.manual_seed(0)
    kind = transformers.VideoMAEForPreTraining if prefixed else transformers.VideoMAEModel
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert (tmp_path / "shards/model.safetensors.index.json").is_file()
    clips = torch.randn(2, 3, 16, 32, 32)
    encoder = model.videomae if prefixed else model
    expected = encoder(clips.transpose(1, 2), output_hidden_states=True).hidden_states
    for folder in ("model", "shards", "model/model.safetensors"):
        trunk = VideoMAE(TrunkConfig(width, depth, 4, mlp_ratio=2.0, image_size=32)).eval()
        coverage = load_trunk(trunk, tmp_path / folder)
        assert bool(coverage.dropped) == prefixed
        tokens = trunk.embed(clips)
        assert torch.allclose(tokens, expected[0], atol=1e-5)
        for block, wanted in zip(trunk.blocks, expected[1:], strict=True):
            tokens = block(tokens)
            assert float((tokens - wanted).norm() / wanted.norm()) < 1e-5
    with pytest.raises(ValueError, match=r"set backbone\.trunk\.heads 4"):
        load_trunk(VideoMAE(TrunkConfig(width, depth, 2, 2.0, image_size=32)), tmp_path / "model")
    with pytest.raises(ValueError, match=r"set backbone\.trunk\.image_size 32"):
        load_trunk(VideoMAE(TrunkConfig(width, depth, 4, 2.0, image_size=64)), tmp_path / "model")
