"""Optimizer groups, the learning-rate schedule and the averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from train.config import TrainingConfig
from train.engine.sharding import spread


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

    The statistics of batch norms follow the weights that they are of, so they are averaged, too.
    Its tensors lie where the module's do, also where those are sharded.

    Attributes:
        tensors: the averages by name of the parameter or statistic.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.tensors = {name: t.detach().clone() for name, t in _moving(module).items()}
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self, module: nn.Module) -> None:
        """Fold in the weights as they are now."""
        self._blend(list(self.tensors.values()), list(_moving(module).values()), None)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from whole averages."""
        for name, mean in self.tensors.items():
            mean.copy_(spread(tensors[name], mean))

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Give the module its averaged weights for as long as the context lasts."""
        moving = _moving(module)
        trained = {name: t.detach().clone() for name, t in moving.items()}
        _copy(self.tensors, moving)
        try:
            yield
        finally:
            _copy(trained, moving)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of a module's batch norms, by name."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        for name, tensor in part.named_buffers(recurse=False)
        if tensor.is_floating_point()
    }


def _moving(module: nn.Module) -> dict[str, Tensor]:
    """Return what a step changes."""
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return learning | statistics(module)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
