"""Weights sharded over processes (FSDP2): gathered for files and for evaluation.

Functions here return tensors that are not sharded unchanged.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def prepare_sharding(accelerator: Accelerator) -> None:
    """Check the settings of an FSDP launch; leave precision to `autocast` alone.

    Raises:
        ValueError: FSDP is enabled, but not version 2 or not on GPUs.
    """
    if not accelerator.is_fsdp2:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError(
                "sharding needs fsdp_version 2 and several GPUs; take configs/accelerate/fsdp.yaml "
                "as it is, or one of the other files there"
            )
        return
    # Sharded or not, a run computes the same: norms and residual sums in float32.
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


def gather_tensors(state: Any, keep: bool) -> Any:
    """Return nested containers with every sharded tensor gathered on the CPU.

    All processes must call this; without `keep` it returns None in place of those tensors.
    """

    def gather(tensor: DTensor) -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if keep else None

    return tree_map_only(DTensor, gather, state)


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor that every process holds, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    device = tensor.to(like.device)
    return distribute_tensor(device, like.device_mesh, like.placements, src_data_rank=None)


def load_model(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a module that may be sharded."""
    layout = module.state_dict()
    module.load_state_dict({name: shard_like(t, layout[name]) for name, t in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load whole tensors into the optimizer of a module that may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {
        index: {
            name: shard_like(value, parameters[index]) if name != "step" else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": sharded})


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Keep whole weights in every process, so that each may predict as often as it needs to.

    A sharded forward pass is a joint one, but processes have different numbers of windows.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if isinstance(module, FSDPModule):
        # A run may begin with this, before a step: a part that is called first would be the root.
        module._get_fsdp_state()._lazy_init()
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            # The root is needed again at once when the backward pass begins.
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()
