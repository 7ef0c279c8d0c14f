"""Checkpoint formats in and out; every tensor is accounted for."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.text import first_of

TRUNK_NAMES = (  # mmaction2 and OpenTAD -> Palindrome
    ("patch_embed.projection.", "patch_embed."),
    (".mlp.layers.0.0.", ".mlp.fc1."),
    (".mlp.layers.1.", ".mlp.fc2."),
)
ADAPTER_NAMES = (
    (".adapter.dwconv.", ".depthwise."),
    (".adapter.conv.", ".pointwise."),
    (".adapter.down_proj.", ".down."),
    (".adapter.up_proj.", ".up."),
    (".adapter.gamma", ".gamma"),
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch checkpoint; pickled code is never run.

    Raises:
        ValueError: the file is missing, unreadable or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}; check the path in the config")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, no checkpoint, or would run "
            f"code ({type(error).__name__})"
        ) from error
    state: object = content
    if isinstance(content, dict):
        # OpenTAD evaluates the averaged weights where it has them.
        state = content.get("state_dict_ema", content.get("state_dict", content))
    state = state if isinstance(state, dict) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors at its top level or under 'state_dict'")
    return tensors


def from_opentad(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an OpenTAD detector's tensors into (backbone, head).

    The backbone's are renamed for `extract.backbone.Backbone`; the head's keep OpenTAD's names,
    which `train.actionformer` knows. The classifier's norm behind the last block is dropped: a
    detector takes its features in front of it.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    prefix = "backbone.model.backbone."
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            head[key] = value
        elif not key.startswith(prefix + "fc_norm."):
            name, tensor = _from_mmaction(key.removeprefix(prefix), value)
            backbone[name] = tensor
    return backbone, head


def _from_mmaction(key: str, value: Tensor) -> tuple[str, Tensor]:
    """Rename one tensor of mmaction2's vision transformer, adapters included."""
    if key == "pos_embed":
        return "trunk.positions", value
    if key == "patch_embed.projection.weight":
        value = value.flatten(1)
    if ".adapter." in key:
        for theirs, ours in ADAPTER_NAMES:
            key = key.replace(theirs, ours)
        return key.replace("blocks.", "adapters."), value
    for theirs, ours in TRUNK_NAMES:
        key = key.replace(theirs, ours)
    return "trunk." + key, value


def read_trunk(path: str | Path) -> dict[str, Tensor]:
    """Return a pretrained transformer's tensors, named as `extract.videomae.VideoMAE` has them."""
    tensors = read_tensors(path)
    prefix = "trunk."
    ours = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if ours:
        return ours
    tensors = {key.removeprefix("backbone."): value for key, value in tensors.items()}
    renamed = dict(
        _from_mmaction(key, value)
        for key, value in tensors.items()
        if not key.startswith(("fc_norm.", "cls_head.", "data_preprocessor."))
    )
    return {key.removeprefix(prefix): value for key, value in renamed.items()}


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Load `tensors` into `module`; anything missing, surplus or mis-shaped stops with a list."""
    own = module.state_dict()
    lines = [f"missing    {key} {tuple(own[key].shape)}" for key in own.keys() - tensors.keys()]
    lines += [
        f"unexpected {key} {tuple(tensors[key].shape)}" for key in tensors.keys() - own.keys()
    ]
    lines += [
        f"shape      {key}: file {tuple(tensors[key].shape)}, model {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    if lines:
        shown = "\n  ".join(first_of(sorted(lines)))
        raise ValueError(
            f"{source} does not fit this model ({len(lines)} of {len(own)} tensors differ); "
            f"check the backbone's size in the config:\n  {shown}"
        )
    module.load_state_dict(tensors)
