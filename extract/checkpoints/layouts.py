"""Layouts of files of weights, recognised by their tensors; their networks in our names.

Our names are those of `extract.backbone.Backbone` (`trunk.…`, `adapters.…`, `ladder.…`) and,
after `head.`, those of `train.modeling.actionformer.ActionFormer`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extract.checkpoints.key_maps import ADAPTERS, TRUNKS, KeyMap, head_from_opentad, rename_key
from extract.checkpoints.tensor_files import TensorFile, read_tensors
from extract.checkpoints.wrappers import count_parts
from extract.settings.units import CLIP_FRAMES, TUBELET

HEAD_PARTS = ("projection.", "neck.", "rpn_head.")  # of OpenTAD's detectors
DETECTOR = "OpenTAD detector"  # the layout's name
NORMALIZER = "rpn_head.loss_normalizer"
KEPT = "kept."  # in our files, the prefix of tensors that only OpenTAD's detectors have
PUBLISHED = {  # width and depth: name and attention heads
    **{(384, 12): ("S", 6), (768, 12): ("B", 12), (1024, 24): ("L", 16)},
    **{(1280, 32): ("H", 16), (1408, 40): ("g", 16)},
}
DATASETS = {  # by number of classes
    **{400: "Kinetics-400", 600: "Kinetics-600", 700: "Kinetics-700", 710: "Kinetics-710"},
    **{174: "Something-Something V2", 101: "UCF101", 51: "HMDB51", 339: "Moments in Time"},
    **{20: "THUMOS-14", 65: "MultiTHUMOS", 157: "Charades", 200: "ActivityNet-1.3"},
    **{97: "EPIC-Kitchens-100's verbs", 110: "Ego4D-MQ"},
    **dict.fromkeys((293, 300), "EPIC-Kitchens-100's nouns"),  # of which 293 have segments
}

CLASSIFIER = "the classifier"
DROPPED = (  # beginnings of names after the transformer's prefix, and why they are not needed
    (("fc_norm.", "norm.", "layernorm."), "the classifier's norm; features are taken before it"),
    (("cls_head.", "head.", "classifier."), CLASSIFIER),
    (("decoder.", "encoder_to_decoder.", "mask_token"), "the decoder of the pretraining"),
    (("data_preprocessor.",), "pixel statistics, which are backbone.mean and backbone.std"),
    ((NORMALIZER,), "part of the loss, which estimates it again"),
    ((KEPT,), "kept for OpenTAD, not used here"),
)
ADDED = ("adapters.", "second.", "ladder.")  # to a transformer, by us
CLASSIFIERS = ("cls_head.fc_cls.weight", "head.weight", "classifier.weight")


@dataclass(frozen=True)
class Size:
    """Sizes of a transformer, from the shapes of its tensors.

    Attributes:
        width: channels of a token; `hidden`: of the MLP; `depth`: blocks.
        patch: side of a patch in pixels.
        positions: rows of the position table; None where the file has none.
    """

    width: int
    depth: int
    hidden: int
    patch: int
    positions: int | None

    def __str__(self) -> str:
        name, _ = PUBLISHED.get((self.width, self.depth), (None, None))
        sizes = f"{self.width} wide, {self.depth} blocks"
        return f"VideoMAE-{name} ({sizes})" if name else f"a VideoMAE ({sizes})"


@dataclass(frozen=True)
class FoundNetwork:
    """One network of a file, in our names.

    Attributes:
        layout: whose names the file has, in words.
        backbone: tensors named as in `Backbone`, and those whose names are not in the key map.
        head: tensors named as in `ActionFormer`; empty where there is no detector.
        dropped: tensors that are not needed, by the file's names, and `why`.
        outputs: classes of the detector's head, or else of the classifier.
        classes: their names, where the file has them.
        settings: of a Hugging Face config, where there is one.
    """

    layout: str
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    dropped: dict[str, Tensor]
    why: dict[str, str]
    outputs: int | None
    classes: tuple[str, ...] | None
    settings: Mapping[str, Any]

    @property
    def trunk(self) -> dict[str, Tensor]:
        """The transformer's tensors, named as in `VideoMAE`."""
        return _select_prefix(self.backbone, "trunk.")

    @property
    def mode(self) -> str:
        """`adapter`, `side`, or `none` where a plain transformer is all there is."""
        kinds = {name.split(".")[0] for name in self.backbone}
        return "adapter" if "adapters" in kinds else "side" if "ladder" in kinds else "none"

    @property
    def adapted(self) -> tuple[int, ...]:
        """The blocks that have an adapter."""
        return _block_numbers(self.backbone, r"(?:ladder\.)?adapters\.(\d+)\.")

    @property
    def size(self) -> Size:
        """Sizes of the transformer."""
        trunk = self.trunk
        embed, table = trunk["patch_embed.weight"], trunk.get("positions")
        hidden = trunk.get("blocks.0.mlp.fc1.weight")
        return Size(
            width=len(embed),
            depth=len(_block_numbers(trunk, r"blocks\.(\d+)\.")),
            hidden=0 if hidden is None else len(hidden),
            patch=round((embed.shape[1] / 3 / TUBELET) ** 0.5),
            positions=None if table is None else table.shape[-2],
        )


def describe_classes(classes: int) -> str:
    """Return a phrase for a number of classes, and the dataset that has as many."""
    dataset = f", as {DATASETS[classes]} has" if classes in DATASETS else ""
    return f"{classes} class{'es' if classes != 1 else ''}{dataset}"


def find_networks(path: str | Path) -> tuple[FoundNetwork, ...]:
    """Return the networks of a file or folder of weights; see `recognise` and `read_tensors`."""
    return recognise(read_tensors(path), path)


def recognise(content: TensorFile, source: str | Path) -> tuple[FoundNetwork, ...]:
    """Return a file's networks, tensors in our names; two if our detector has two streams.

    Args:
        source: the file, for messages.

    Raises:
        ValueError: it holds no video transformer in a known layout, or one that computes something
            else than ours.
    """
    tensors = content.tensors
    streams = _block_numbers(tensors, r"streams\.(\d+)\.backbone\.")
    if streams:
        return tuple(_stream(tensors, content, number) for number in streams)
    for sign, (layout, names) in TRUNKS.items():
        found = [name for name in tensors if name.endswith(sign)]
        if found:
            prefix = found[0].removesuffix(sign)
            network = _network(tensors, prefix, layout, names)
            if names:
                _check_arithmetic(tensors[found[0]], content.settings, source)
            return (replace(network, classes=content.classes, settings=content.settings),)
    shown = ", ".join(sorted(tensors)[:4])
    raise ValueError(
        f"{source} holds no video transformer in a known layout "
        f"({', '.join(layout for layout, _ in TRUNKS.values())}); its tensors are {shown}, …, and "
        f"their names begin with {count_parts(tensors)}"
    )


def _stream(tensors: Mapping[str, Tensor], content: TensorFile, number: int) -> FoundNetwork:
    own = _select_prefix(tensors, f"streams.{number}.")
    fusion = {n: t for n, t in tensors.items() if n.startswith("fusion.")}
    head = _select_prefix(own, "head.")
    return FoundNetwork(
        "Palindrome detector",
        _select_prefix(own, "backbone."),
        head,
        dropped=fusion,
        why=dict.fromkeys(fusion, "the fusion of two streams"),
        outputs=len(head["class_out.weight"]),
        classes=content.classes,
        settings={},
    )


def _network(
    tensors: Mapping[str, Tensor], prefix: str, layout: str, names: KeyMap
) -> FoundNetwork:
    """Return a file's network: its tensors of the backbone, of the head, and those not needed.

    Args:
        prefix: of the transformer's names; `names`: their key map, empty for our own names.
    """
    own = _select_prefix(tensors, prefix)
    blocks = _block_numbers(own, r"(?:blocks|encoder\.layer)\.(\d+)\.")
    # OpenTAD counts a ladder's adapters from 0; they are beside the last blocks.
    first = len(blocks) - len(_block_numbers(own, r"ladders\.adapters\.(\d+)\."))
    detector = not names or any(name.startswith(HEAD_PARTS) for name in tensors)
    parts = HEAD_PARTS if names else ("head.",)
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    dropped: dict[str, Tensor] = {}
    why: dict[str, str] = {}
    for name, tensor in tensors.items():
        rest = name.removeprefix(prefix)
        causes = [cause for beginnings, cause in DROPPED if rest.startswith(beginnings)]
        if rest.endswith(".attention.key.bias"):
            causes = ["a bias of the keys, which raises all scores of a query alike: no effect"]
        if detector and name.startswith(parts) and name != NORMALIZER:
            head[name.removeprefix("head.")] = tensor
        elif causes:
            dropped[name], why[name] = tensor, causes[0]
        elif not names:
            backbone[rest] = tensor
        elif rest != name or not prefix:
            backbone[_rename_trunk_key(rest, names, first)] = tensor
        else:
            backbone[name] = tensor  # unknown; strict loading will report it
    if names:
        head = head_from_opentad(head)
        backbone = _reshape_trunk(backbone)
        if head:
            layout = DETECTOR
        elif prefix.endswith("encoder."):
            layout = f"{layout} pretraining"
    scores = [head["class_out.weight"]] if "class_out.weight" in head else []
    scores += [t for name, t in dropped.items() if name.removeprefix(prefix) in CLASSIFIERS]
    outputs = len(scores[0]) if scores else None
    if outputs is not None and not head:
        described = f"{CLASSIFIER} of {describe_classes(outputs)}"
        why = {n: described if cause == CLASSIFIER else cause for n, cause in why.items()}
    return FoundNetwork(layout, backbone, head, dropped, why, outputs, None, {})


def _rename_trunk_key(name: str, names: KeyMap, first: int) -> str:
    """Return our name for a tensor's name after the transformer's prefix, adapters included."""
    if found := re.fullmatch(r"blocks\.(\d+)\.adapter(\..+)", name):
        return f"adapters.{found[1]}{rename_key(found[2], ADAPTERS)}"
    if found := re.fullmatch(r"ladders\.adapters\.(\d+)(\..+)", name):
        return f"ladder.adapters.{int(found[1]) + first}{rename_key(found[2], ADAPTERS)}"
    return "trunk." + rename_key(name, names)


def _reshape_trunk(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with patches as rows, and queries, keys and values as one matrix."""
    reshaped = dict(backbone)
    patches = "trunk.patch_embed.weight"
    reshaped[patches] = reshaped[patches].flatten(1)
    for name in backbone:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if name.endswith(".attn.query.weight") and all(part in backbone for part in parts):
            joined = torch.cat([reshaped.pop(part) for part in parts])
            reshaped[name.replace(".query.", ".qkv.")] = joined
    return reshaped


def _check_arithmetic(patches: Tensor, settings: Mapping[str, Any], source: str | Path) -> None:
    """Raise ValueError unless a transformer's patches, clips and activations are like ours."""
    shape = tuple(patches.shape[1:])
    if len(shape) != 4 or shape[:2] != (3, TUBELET) or shape[2] != shape[3]:
        raise ValueError(
            f"{source}: its patches are {shape}, not (3, {TUBELET}, p, p) for RGB, {TUBELET} "
            "frames and p × p pixels; it is not a VideoMAE"
        )
    for name, ours in (("num_frames", CLIP_FRAMES), ("hidden_act", "gelu")):
        if settings.get(name, ours) != ours:
            raise ValueError(f"{source}: its config has {name} {settings[name]}; ours is {ours}")


def _select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _block_numbers(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    found = (re.match(pattern, name) for name in names)
    return tuple(sorted({int(match[1]) for match in found if match}))
