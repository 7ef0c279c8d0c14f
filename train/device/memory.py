"""Memory of a training step, estimated, and what is recomputed so that it fits the device."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from configs.messages import format_bytes
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import held_weights
from extract.backbone.precision import AUTOCAST
from extract.settings.backbone import BackboneConfig, Recompute
from extract.settings.units import TUBELET
from train.config import Experiment
from train.data.in_memory import free_device_memory, free_memory

CHOICES: Sequence[Recompute] = get_args(Recompute)  # the fastest first
STATE = 4  # bytes of a number of the tokens between blocks, in every precision
HEAD = 400  # bytes kept of a head per feature step and channel
GRADIENTS_AND_AVERAGES = 4 * 4  # bytes a weight that learns: its gradient, Adam's two, its average
CONTEXT = 1e9  # bytes of a GPU's context and workspaces
USABLE = 0.9  # of what is free: gaps between tensors take the rest


def settle_recompute(
    streams: Sequence[nn.Module], config: Experiment, device: torch.device, processes: int
) -> str:
    """Choose what backbones recompute where the config leaves it to the machine; return why.

    No number of the training depends on it, and no fingerprint.

    Args:
        streams: of the detector, each with a `backbone`.
        processes: of the run.

    Returns:
        One line for people; empty where there was nothing to choose.
    """
    backbones = [b for s in streams for b in (s.backbone,) if isinstance(b, Backbone)]
    if config.backbone.recompute != "auto" or not config.backbone.learns or not backbones:
        return ""
    free = free_bytes(device, processes)
    if not free:
        return ""
    exact = exact_bytes(config)
    absent = _bytes_to_come(streams, device, exact)
    windows = -(-config.training.global_batch // (processes * config.training.accumulate))
    needed = {
        kind: absent + len(backbones) * activation_bytes(config, kind, windows) for kind in CHOICES
    }
    budget = max(USABLE * free - (CONTEXT if device.type == "cuda" else 0), 0)
    chosen = next((kind for kind, bytes_ in needed.items() if bytes_ <= budget), CHOICES[-1])
    for backbone in backbones:
        backbone.recompute = chosen
    return describe_choice(chosen, needed, budget, device)


def describe_choice(
    chosen: Recompute, needed: dict[Recompute, float], budget: float, device: torch.device
) -> str:
    """Return one line that says what was chosen, and why."""
    before = CHOICES[CHOICES.index(chosen) - 1] if chosen != CHOICES[0] else None
    why = f"a step needs about {format_bytes(needed[chosen])}"
    if before is not None:
        why += f", {before} {format_bytes(needed[before])}"
    why += f", and {format_bytes(budget)} of the {device.type.upper()}'s memory are free"
    if needed[chosen] > budget:
        why += ": likely too little; raise training.accumulate"
    return f"backbone.recompute auto: {chosen} ({why})"


def free_bytes(device: torch.device, processes: int) -> int:
    """Return the bytes that a process can still have on its device; 0 where nobody can say."""
    if device.type == "cuda":
        return free_device_memory(device)
    return free_memory() // processes if device.type == "cpu" else 0


def activation_bytes(config: Experiment, recompute: Recompute, windows: int) -> float:
    """Return the bytes of one stream's activations at the peak of a training step.

    Counted on fake tensors (`python -m benchmarks.memory`), which it meets within a tenth.
    """
    backbone, sampling = config.backbone, config.sampling
    patches = (config.pixels.size // backbone.trunk.patch) ** 2
    numbers = windows * sampling.samples // TUBELET * patches * backbone.width
    exact = exact_bytes(config)
    kept = kept_activation_bytes(backbone, recompute, exact)
    if recompute == "none" or backbone.mode == "side":
        passing = exact * backbone.trunk.mlp_ratio  # the gradient of the widest product
    else:  # all of a block, computed again
        passing = block_bytes(backbone, "none", exact) + adapter_bytes(backbone, "none", exact)
    head = windows * sampling.window_size * config.head.width * HEAD
    pixels = 2 * windows * 3 * sampling.samples * config.pixels.size**2
    return numbers * (kept + 2 * STATE + passing) + head + pixels


def kept_activation_bytes(config: BackboneConfig, recompute: Recompute, exact: int) -> float:
    """Return the bytes that wait for the backward pass, per number of the tokens.

    Args:
        exact: bytes of a number in the working precision.
    """
    first, adapted = config.first_trainable_block, config.adapted_blocks
    adapters = sum(k >= first for k in adapted)
    if config.mode == "side":  # no gradient passes through blocks
        return adapters * adapter_bytes(config, recompute, exact)
    learned = [k for k in adapted if k >= first]
    begin = first if config.mode == "full" else min(learned, default=config.depth)
    if config.second_from_block is not None:
        begin = first
        adapters += config.depth - first
    blocks = config.depth - begin
    if config.mode != "full":
        # Frozen, the block before the first adapter that learns keeps nothing.
        blocks -= 1
        if recompute != "none":  # the other adapters are recomputed with their blocks
            adapters = 1
    return blocks * block_bytes(config, recompute, exact) + adapters * adapter_bytes(
        config, recompute, exact
    )


def block_bytes(config: BackboneConfig, recompute: Recompute, exact: int) -> float:
    """Return the bytes that a block keeps, per number of the tokens."""
    if recompute == "full":
        return STATE
    if recompute == "selective":
        return STATE + exact  # and what attention gave
    ratio = config.trunk.mlp_ratio
    frozen = 2 * STATE + exact * (4 + ratio)  # queries, keys, values, attention, hidden units
    # Weights that learn need what their products begin with.
    return frozen + (exact * (3 + ratio) if config.mode == "full" else 0)


def adapter_bytes(config: BackboneConfig, recompute: Recompute, exact: int) -> float:
    """Return the bytes that an adapter keeps by itself, per number of the tokens."""
    if not config.adapted_blocks:
        return 0
    return exact * (1 + config.adapter_ratio * (4 if recompute == "none" else 2))


def exact_bytes(config: Experiment) -> int:
    """Return the bytes of a number in the working precision."""
    return 2 if config.training.precision in AUTOCAST else 4


def _bytes_to_come(modules: Sequence[nn.Module], device: torch.device, exact: int) -> int:
    """Return the bytes that weights, gradients and averages still take on the device."""
    held = {weight for module in modules for weight in held_weights(module)}
    weights = learning = 0
    for weight in {p for module in modules for p in module.parameters()} - held:
        absent = weight.device.type != device.type
        if weight.requires_grad:
            learning += weight.numel()
            weights += absent * weight.nbytes
        elif absent or exact < weight.element_size():  # see `hold_frozen`
            weights += exact * weight.numel()
    return weights + GRADIENTS_AND_AVERAGES * learning
