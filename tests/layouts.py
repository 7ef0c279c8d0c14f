"""Files of weights as other programs write them, made of a small network of ours.

The names are spelled out here a second time, so that a wrong table in
extract/checkpoints/key_maps.py shows.
"""

import torch
from torch import Tensor

from extract.backbone.backbone import Backbone
from extract.settings.backbone import BackboneConfig, TrunkConfig

SMALL = TrunkConfig(width=32, depth=3, heads=2, image_size=32)
LAYER = {  # Hugging Face's names of the same, but for queries, keys and values
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
ADAPTER = {"down": "down_proj", "up": "up_proj", "depthwise": "dwconv", "pointwise": "conv"}


def random_backbone(config: TrunkConfig = SMALL, seed: int = 0) -> Backbone:
    """A backbone whose every number matters."""
    torch.manual_seed(seed)
    backbone = Backbone(BackboneConfig(config))
    for parameter in backbone.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone.eval()


def videomae(trunk: dict[str, Tensor], classes: int = 400) -> dict[str, Tensor]:
    """MCG-NJU/VideoMAE's fine-tuned layout, VideoMAEv2's too: no position table."""
    width = len(trunk["patch_embed.bias"])
    patch = round((trunk["patch_embed.weight"].shape[1] / 6) ** 0.5)
    theirs = {
        "patch_embed.proj.weight": trunk["patch_embed.weight"].view(width, 3, 2, patch, patch),
        "patch_embed.proj.bias": trunk["patch_embed.bias"],
    }
    theirs |= {name: t for name, t in trunk.items() if name.startswith("blocks.")}
    return theirs | classifier("fc_norm", "head", width, classes)


def classifier(norm: str, head: str, width: int, classes: int) -> dict[str, Tensor]:
    return {
        f"{norm}.weight": torch.ones(width),
        f"{norm}.bias": torch.zeros(width),
        f"{head}.weight": torch.zeros(classes, width),
        f"{head}.bias": torch.zeros(classes),
    }


def pretraining(trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same authors' pretraining: an encoder, and a decoder that is not needed."""
    plain = {n: t for n, t in videomae(trunk).items() if not n.startswith(("fc_norm.", "head."))}
    width = len(trunk["patch_embed.bias"])
    return {f"encoder.{name}": tensor for name, tensor in plain.items()} | {
        "encoder.norm.weight": torch.ones(width),
        "encoder.norm.bias": torch.zeros(width),
        "encoder_to_decoder.weight": torch.zeros(8, width),
        "mask_token": torch.zeros(1, 1, 8),
        "decoder.blocks.0.norm1.weight": torch.ones(8),
        "decoder.norm.weight": torch.ones(8),
        "decoder.head.weight": torch.zeros(1536, 8),
    }


def mmaction(trunk: dict[str, Tensor], classes: int = 400) -> dict[str, Tensor]:
    """mmaction2's layout: with the position table."""
    width = len(trunk["patch_embed.bias"])
    theirs = {"backbone.pos_embed": trunk["positions"]}
    for name, tensor in videomae(trunk).items():
        if not name.startswith(("fc_norm.", "head.")):
            name = name.replace("patch_embed.proj.", "patch_embed.projection.")
            name = name.replace(".fc1.", ".layers.0.0.").replace(".fc2.", ".layers.1.")
            theirs[f"backbone.{name}"] = tensor
    return theirs | classifier("backbone.fc_norm", "cls_head.fc_cls", width, classes)


def hugging_face(trunk: dict[str, Tensor], prefix: str = "videomae.") -> dict[str, Tensor]:
    """The transformers library's layout, with the bias names of its published files."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in videomae(trunk).items():
        if name.startswith("patch_embed."):
            name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
            theirs[prefix + name] = tensor
        elif name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            layer = f"{prefix}encoder.layer.{number}."
            if rest == "attn.qkv.weight":
                for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    # Copied: some writers refuse tensors that share memory.
                    theirs[f"{layer}attention.attention.{part}.weight"] = rows.clone()
            elif rest in ("attn.q_bias", "attn.v_bias"):
                theirs[layer + rest.replace("attn.", "attention.attention.")] = tensor
            else:
                part, _, kind = rest.rpartition(".")
                theirs[f"{layer}{LAYER[part]}.{kind}"] = tensor
    return theirs


def opentad(backbone: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenTAD's detectors around a backbone of ours; the head has OpenTAD's names already."""
    trunk = {n.removeprefix("trunk."): t for n, t in backbone.items() if n.startswith("trunk.")}
    theirs = {
        f"backbone.model.{name}": tensor
        for name, tensor in mmaction(trunk).items()
        if name.startswith("backbone.")
    }
    ladder = [name for name in backbone if name.startswith("ladder.")]
    first = min((int(name.split(".")[2]) for name in ladder), default=0)
    for name, tensor in backbone.items():
        kind, _, rest = name.partition(".")
        if kind not in ("adapters", "ladder"):
            continue
        number, part, *last = rest.removeprefix("adapters.").split(".")
        beside = f"ladders.adapters.{int(number) - first}"
        at = beside if kind == "ladder" else f"blocks.{number}.adapter"
        name = ".".join((at, ADAPTER.get(part, part), *last))
        theirs[f"backbone.model.backbone.{name}"] = tensor
    if ladder:
        theirs = {name: t for name, t in theirs.items() if "fc_norm" not in name}
    every = theirs | head | {"rpn_head.loss_normalizer": torch.tensor(250)}
    return {f"module.{name}": tensor for name, tensor in every.items()}
