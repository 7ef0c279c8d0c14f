"""What is the same in every step of a transformer that does not learn: made once."""

import torch
from torch import Tensor, nn

from extract.backbone.precision import working_dtype
from extract.backbone.videomae import Attention, Linear, VideoMAE
from extract.settings.backbone import Precision


def hold_frozen(network: nn.Module, precision: Precision, size: int) -> None:
    """Hold what transformers' frozen blocks compute with, in the working precision.

    No number changes: autocast rounds a frozen matrix in the same way, at every use. The weights
    themselves stay exact, and so do checkpoints and fingerprints; of rounded ones they move to the
    host, as nothing on the device needs them any more.

    Args:
        network: on its device, with the weights that it is to have: if frozen ones are changed or
            moved later, what is held is not.
        size: of pictures, in pixels.
    """
    for part in network.modules():
        if isinstance(part, VideoMAE):
            part.hold_positions(size)
        elif isinstance(part, Attention) and not part.q_bias.requires_grad:
            half = working_dtype(precision, part.q_bias.device)
            part.hold(half or torch.float32)
            if half:
                move_to_host(*_held_by(part))
        elif isinstance(part, Linear) and not part.weight.requires_grad:
            half = working_dtype(precision, part.weight.device)
            if half:
                part.hold(half)
                move_to_host(*_held_by(part))


def held_weights(network: nn.Module) -> set[Tensor]:
    """Return the weights whose copies `hold_frozen` has made."""
    return {
        weight
        for part in network.modules()
        if isinstance(part, Attention | Linear) and part.working is not None
        for weight in _held_by(part)
    }


def _held_by(part: Attention | Linear) -> tuple[Tensor, ...]:
    if isinstance(part, Attention):
        return part.qkv.weight, part.q_bias, part.v_bias
    return part.weight, part.bias


def move_to_host(*weights: Tensor) -> None:
    """Move weights to the host."""
    for weight in weights:
        weight.data = weight.data.cpu()
