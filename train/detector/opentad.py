"""Detectors of other projects, such as OpenTAD's AdaTAD, as checkpoints of ours."""

from dataclasses import replace
from pathlib import Path

from evaluate.datasets.classes import read_classes
from extract.backbone.pretrained import check_trunk_size
from extract.checkpoints.layouts import FoundNetwork, describe_classes
from train.config import DataConfig, Experiment
from train.data.truth import ACTION
from train.engine.checkpoint import Checkpoint


def checkpoint_from_opentad(
    network: FoundNetwork, config: Experiment, path: str | Path, number: int = 0
) -> Checkpoint[Experiment]:
    """Return another project's detector as a checkpoint of one stream.

    Args:
        config: the experiment that it comes from; `number`: which of its streams it is.

    Raises:
        ValueError: it is not a detector, or not that experiment's.
    """
    directions = config.directions
    if number >= len(directions):
        raise ValueError(
            f"{path} would be stream {number + 1}, but with fusion.method {config.fusion.method} "
            f"there are {len(directions)}; set --fusion.method"
        )
    if not network.head:
        raise ValueError(
            f"{path} ({network.layout}) is not a detector: it has a transformer, but no head; name "
            "it as backbone.weights instead"
        )
    check_trunk_size(network, config.backbone.trunk, path)
    mode = config.backbone.mode if config.backbone.mode in ("adapter", "side") else "none"
    if network.mode != mode:
        raise ValueError(
            f"{path} is of mode {network.mode} ({_where(network)}), but backbone.mode is "
            f"{config.backbone.mode}; set it to {_modes(network)}"
        )
    tensors = {f"backbone.{name}": tensor for name, tensor in network.backbone.items()}
    tensors |= {f"head.{name}": tensor for name, tensor in network.head.items()}
    weights = {f"streams.0.{name}": tensor.float() for name, tensor in tensors.items()}
    alone = replace(
        config, direction=directions[number], fusion=replace(config.fusion, method="none")
    )
    return Checkpoint(alone, _classes(network, config.data, path), weights, weights, training={})


def _where(network: FoundNetwork) -> str:
    blocks = network.adapted
    return f"adapters at blocks {blocks[0]} to {blocks[-1]}" if blocks else "no adapters"


def _modes(network: FoundNetwork) -> str:
    return "frozen or full" if network.mode == "none" else network.mode


def _classes(network: FoundNetwork, data: DataConfig, path: str | Path) -> tuple[str, ...]:
    """Return the names of a detector's classes: its own, or those of the list it was trained with.

    Raises:
        ValueError: there is no list, or one of another length.
    """
    if network.classes is not None:
        return network.classes
    if data.class_agnostic and network.outputs == 1:
        return (ACTION,)
    file = data.classes
    if file is None:
        raise ValueError(
            f"{path} does not name its {network.outputs} classes: set data.classes to the "
            "category_idx.txt that it was trained with"
        )
    if not Path(file).is_file():
        raise ValueError(f"data.classes: there is no file {file}")
    classes = read_classes(Path(file)).names
    if len(classes) != network.outputs:
        raise ValueError(
            f"{path} has {describe_classes(network.outputs or 0)}, but {file} names "
            f"{len(classes)}: set data.classes to the category_idx.txt that it was trained with"
        )
    return classes
