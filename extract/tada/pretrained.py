"""TAdaConv networks in files of weights, the TAdaConv project's or ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from extract.checkpoints.key_maps import TADA2D, TADA_CONVNEXT, KeyMap, rename_key
from extract.checkpoints.layouts import describe_classes
from extract.checkpoints.strict import load_state_dict_strict
from extract.checkpoints.tensor_files import TensorFile, read_tensors
from extract.tada.convnext import TAdaConvNeXt, TAdaConvNeXtConfig
from extract.tada.tada2d import TAda2D, TAda2DConfig

Config = TAda2DConfig | TAdaConvNeXtConfig
PROJECT, OURS = "TAdaConv project", "Palindrome weights"
SIGNS: dict[str, tuple[str, KeyMap]] = {  # layouts by a tensor that only they have
    "backbone.conv2.res_1.conv_branch.b_rf.b.weight": (PROJECT, TADA2D),
    "backbone.stages.0.0.dwconv_rf.b.weight": (PROJECT, TADA_CONVNEXT),
    "stages.0.0.adaptive.route.up.weight": (OURS, ()),
    "stages.0.0.route.scales.weight": (OURS, ()),
}
CLASSIFIER = "classifier."
TASKS = ("head.linear1.", "head.linear2.")  # EPIC-Kitchens' verbs and nouns
PUBLISHED = {
    TAda2DConfig(1): "TAda2D ResNet-50",
    TAdaConvNeXtConfig(1): "TAdaConvNeXtV2-T",
    TAdaConvNeXtConfig(1, (3, 3, 27, 3)): "TAdaConvNeXtV2-S",
    TAdaConvNeXtConfig(1, (3, 3, 27, 3), (128, 256, 512, 1024)): "TAdaConvNeXtV2-B",
}


@dataclass(frozen=True)
class TAdaNetwork:
    """A TAdaConv network of a file, in our names.

    Attributes:
        layout: whose names the file has, in words.
        config: its sizes, inferred from its tensors.
        tensors: named as in `TAda2D` or `TAdaConvNeXt`, and those with unknown names.
        tasks: classes of each task, where the file has a classifier for each; together they are
            one classifier here, task after task.
    """

    layout: str
    config: Config
    tensors: dict[str, Tensor]
    tasks: tuple[int, ...]

    def __str__(self) -> str:
        plain = replace(self.config, classes=1)
        kind = "TAda2D" if isinstance(plain, TAda2DConfig) else "TAdaConvNeXtV2"
        return f"{PUBLISHED.get(plain, f'a {kind} of another size')} ({self.layout})"

    @property
    def classes(self) -> str:
        """The classifier in words."""
        return "classifier of " + " and ".join(describe_classes(count) for count in self.tasks)


def recognise_tada(content: TensorFile, source: str | Path) -> TAdaNetwork | None:
    """Return a file's TAdaConv network; None if it holds none.

    Args:
        source: the file, for messages.

    Raises:
        ValueError: so much is missing or damaged that its size is not known.
    """
    tensors = content.tensors
    sign = next((sign for sign in SIGNS if sign in tensors), None)
    if sign is None:
        return None
    layout, names = SIGNS[sign]
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = rename_key(name, names)
        ours[name] = _drop_axes(name, tensor)
    tasks = [_count_rows(ours[f"{task}weight"]) for task in TASKS if f"{task}weight" in ours]
    for kind in ("weight", "bias"):
        parts = [ours[task + kind] for task in TASKS if task + kind in ours]
        alike = all(part.ndim for part in parts) and len({part.shape[1:] for part in parts}) == 1
        if len(parts) == len(TASKS) and alike:  # else strict loading will report it
            ours[f"classifier.{kind}"] = torch.cat([ours.pop(task + kind) for task in TASKS])
    if not tasks and "classifier.weight" in ours:
        tasks = [_count_rows(ours["classifier.weight"])]
    try:
        config = _infer_config(ours, sum(tasks))
    except ValueError as error:
        raise ValueError(f"{source} is damaged: {error}") from error
    if names:
        ours = _group_by_head(ours, config)
    return TAdaNetwork(layout, config, ours, tuple(tasks))


def load_tada(source: str | Path) -> TAda2D | TAdaConvNeXt:
    """Return the network of a file, with its classifier, in eval mode.

    Raises:
        ValueError: the file cannot be read, holds no TAdaConv network, or not all of it.
    """
    found = _require_tada(source)
    with torch.device("meta"):  # no random weights are needed
        network = build_tada(found.config)
    load_state_dict_strict(network, found.tensors, source)
    return network.eval()


def load_tada_features(network: TAda2D | TAdaConvNeXt, source: str | Path) -> None:
    """Load all of a file's network but its classifier, strictly; the network keeps its own.

    Raises:
        ValueError: the file cannot be read, or holds another network.
    """
    own = network.state_dict().items()
    classifier = {name: tensor for name, tensor in own if name.startswith(CLASSIFIER)}
    theirs = _require_tada(source).tensors.items()
    tensors = {name: tensor for name, tensor in theirs if not name.startswith(CLASSIFIER)}
    load_state_dict_strict(network, tensors | classifier, source)


def build_tada(config: Config) -> TAda2D | TAdaConvNeXt:
    """Return the network of a config with random weights."""
    return TAda2D(config) if isinstance(config, TAda2DConfig) else TAdaConvNeXt(config)


def _require_tada(source: str | Path) -> TAdaNetwork:
    found = recognise_tada(read_tensors(source), source)
    if found is None:
        raise ValueError(
            f"{source} holds no TAdaConv network; python extract/weights.py shows what it holds"
        )
    return found


def _drop_axes(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor without the axes of length 1 that only the published layout has."""
    if name.endswith(("adaptive.conv.weight", "depthwise.weight", "depthwise.bias")):
        return tensor[0, 0] if tensor.shape[:2] == (1, 1) and tensor.ndim != 4 else tensor
    if ".route." in name and tensor.ndim == 5:
        linear = ".qkv." in name or ".out." in name
        return tensor.flatten(1) if linear else tensor.flatten(2)
    return tensor.squeeze(2) if tensor.ndim == 5 else tensor


def _infer_config(tensors: Mapping[str, Tensor], classes: int) -> Config:
    """Return the sizes of tensors in our names; one class if there is no classifier."""
    depths: dict[int, int] = {}
    widths: dict[int, int] = {}
    for name, tensor in tensors.items():
        # Each block has one.
        if found := re.fullmatch(r"stages\.(\d+)\.\d+\.average_norm\.weight", name):
            stage = int(found[1])
            depths[stage], widths[stage] = depths.get(stage, 0) + 1, tensor.numel()
    blocks = tuple(depths[stage] for stage in sorted(depths))
    if "stages.0.0.adaptive.route.up.weight" in tensors:
        return TAda2DConfig(max(classes, 1), blocks, widths.get(0, 0))
    sizes = tuple(widths[stage] for stage in sorted(depths))
    return TAdaConvNeXtConfig(max(classes, 1), blocks, sizes)


def _group_by_head(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Return the tensors with the rows of queries, keys and values grouped by head.

    In the published attention, head h reads channels h, h + heads, h + 2·heads, … of each, but its
    output channels are contiguous.
    """
    if isinstance(config, TAda2DConfig):
        return tensors
    ordered, head = dict(tensors), config.widths[0] // 2
    for name, tensor in tensors.items():
        rows = _count_rows(tensor) if tensor.numel() else 0
        # One of another size stays as it is, so that strict loading reports it.
        if ".route.qkv." in name and rows and rows % (3 * head) == 0:
            ordered[name] = tensor.unflatten(0, (3, head, -1)).transpose(1, 2).flatten(0, 2)
    return ordered


def _count_rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 0
