"""Optimizer groups, the learning-rate schedule and the averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from train.config import TrainingConfig
from train.detector import Detector
from train.sharding import spread


def build_optimizer(detector: Detector, config: TrainingConfig) -> AdamW:
    """AdamW with a learning rate each for heads and backbones; no decay on biases, norms, scales.

    Every stream, and the fusion, has groups of its own.
    """
    groups = []
    parts: list[tuple[nn.Module, float]] = [
        part
        for stream in detector.streams
        for part in ((stream.head, config.lr), (stream.backbone, config.backbone_lr))
    ]
    if detector.fusion is not None:
        parts.append((detector.fusion, config.lr))
    for module, lr in parts:
        for group in param_groups_weight_decay(module, config.weight_decay):
            if group["params"]:
                groups.append(group | {"lr": lr})
    # Fused, it learns on the device whether fp16 gradients overflowed; otherwise the host asks.
    return AdamW(groups, fused=True)


def build_schedule(
    optimizer: Optimizer, config: TrainingConfig, steps_per_epoch: int
) -> CosineLRScheduler:
    """Linear warm-up, then cosine from the full rate to zero at `epochs` (AdaTAD's recipe).

    Call `step_update(step)` before every step.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    return CosineLRScheduler(
        optimizer,
        t_initial=config.epochs * steps_per_epoch - warmup,
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )


class Average:
    """Exponential moving average of what learns; what is frozen is its own average.

    Its tensors lie where the module's do, also where those are sharded.

    Attributes:
        tensors: the averages by name of the parameter.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.tensors = {name: p.detach().clone() for name, p in _learning(module).items()}
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self, module: nn.Module) -> None:
        """Fold in the weights as they are now."""
        self._blend(list(self.tensors.values()), list(_learning(module).values()), None)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from whole averages."""
        for name, mean in self.tensors.items():
            mean.copy_(spread(tensors[name], mean))

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Give the module its averaged weights for as long as the context lasts."""
        learning = _learning(module)
        trained = {name: p.detach().clone() for name, p in learning.items()}
        _copy(self.tensors, learning)
        try:
            yield
        finally:
            _copy(trained, learning)


def _learning(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, nn.Parameter]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
