"""Activation checkpointing: the backward pass recomputes activations to save memory.

Between keeping everything and keeping only a block's input lies keeping what takes much work for
little memory: attention. Products and norms are the opposite: their results are as wide as the
tokens or wider, and cheap to compute again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from extract.settings.backbone import Recompute

aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def checkpointed(
    block: Callable[..., Tensor], recompute: Recompute, *inputs: Tensor | None
) -> Tensor:
    """Return a block's result, which must depend on its inputs and weights only, not on chance."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _recompute_policy)
    result: Tensor = checkpoint(block, *inputs, **options)
    return result


def _recompute_policy(context: object, op: object, *arguments: Any, **_: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
