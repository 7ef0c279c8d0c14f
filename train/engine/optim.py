"""Optimizer groups, the learning-rate schedule and the averaged weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from configs.messages import format_count
from train.config import TrainingConfig
from train.engine.sharding import shard_like

MORE_UPDATES = (
    "raise training.updates; or, where that is null, training.epochs and training.stop_epoch, or "
    "lower training.global_batch"
)
FEW_UPDATES = 500  # ordinary runs have thousands


def describe_updates(per_epoch: int, epochs: int) -> str:
    """Return how many updates a run has, and what to do if they are few, as text."""
    total = per_epoch * epochs
    text = f"{format_count(per_epoch, 'update')} an epoch, {total} in all"
    if total < FEW_UPDATES:
        text += f"\nwarning: {total} updates are few, and may teach little: {MORE_UPDATES}"
    return text


def group_by_decay(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimizer's groups of what learns: biases, norms and scales, without decay, first.

    They have at most one axis, or are called bias. Groups without weights are left out.
    """
    free, decayed = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            exempt = weight.ndim <= 1 or name.endswith(".bias") or not weight_decay
            (free if exempt else decayed).append(weight)
    groups: list[dict[str, Any]] = [
        {"params": free, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def step_optimizer(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Take a step; with a scaler, whose scale then adapts, only if no gradient overflowed."""
    if scaler is None:
        optimizer.step()
        return
    scaler.step(optimizer)
    scaler.update()


class Schedule:
    """Learning rates by the number of the step, without state.

    Args:
        warmup: updates W of the linear warm-up; `start`: the share of the rates that it begins
            with; `total`: updates of all, at whose end the rates are zero.
        peak: the step at which the warm-up's line meets the cosine, W or W - 1.
        cosine_start: the step at which the cosine has the full rates, 0 or W.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int,
        start: float,
        total: int,
        peak: int,
        cosine_start: int,
    ) -> None:
        self.optimizer, self.warmup, self.start = optimizer, warmup, start
        self.total, self.peak, self.cosine_start = total, peak, cosine_start
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.rates = [group["initial_lr"] for group in optimizer.param_groups]

    def step_update(self, step: int) -> None:
        """Set the rates of a step."""
        share = self._cosine(max(step, self.warmup))
        if step < self.warmup:
            share = self.start + (share - self.start) * step / max(self.peak, 1)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _cosine(self, step: int) -> float:
        done = (step - self.cosine_start) / max(self.total - self.cosine_start, 1)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2


def build_schedule(optimizer: Optimizer, config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """Return linear warm-up, then cosine to zero at `epochs`.

    As published, AdaTAD's cosine begins after the warm-up, TAdaConv's with the first update. Call
    `step_update(step)` before every step.
    """
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    peak = warmup - config.warmup_ends_full
    cosine_start = warmup if config.cosine_after_warmup else 0
    return Schedule(optimizer, warmup, config.warmup_start, total, peak, cosine_start)


class Average:
    """Exponential moving average of the weights that learn; frozen ones are their own average.

    It is corrected for its start, as Adam's are: after n updates the initial weights would have a
    share of decayⁿ, 74 % after 300 updates with 0.999; instead they have none, and the shares of
    all steps, still decaying, add up to 1.

    The statistics of batch norms belong to the weights, so they are averaged, too. The averages are
    on the module's device, and sharded as its tensors are.

    Attributes:
        tensors: the averages by name of the parameter or statistic.
        moving: the module's tensors that are averaged, which must stay in their places: to find
            them takes some milliseconds, which a step on features would notice.
        updates: how many were averaged; infinite if the initial weights keep their share, as in
            runs that an earlier version began.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.moving = _moving(module)
        self.tensors = {name: t.detach().clone() for name, t in self.moving.items()}
        self.decay, self.updates = decay, 0.0

    def update(self) -> None:
        """Add the module's present weights to the average."""
        self.updates += 1
        before, now = (1 - self.decay**n for n in (self.updates - 1, self.updates))
        blend = get_ema_multi_avg_fn(self.decay * before / now)
        blend(list(self.tensors.values()), list(self.moving.values()), None)

    def load(self, tensors: dict[str, Tensor], updates: float) -> None:
        """Load unsharded averages of so many updates."""
        self.updates = updates
        for name, mean in self.tensors.items():
            mean.copy_(shard_like(tensors[name], mean))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the averaged weights into the module for the duration of the context."""
        trained = {name: t.detach().clone() for name, t in self.moving.items()}
        _copy(self.tensors, self.moving)
        try:
            yield
        finally:
            _copy(trained, self.moving)


def batch_norm_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of a module's batch norms, by name."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        for name, tensor in part.named_buffers(recurse=False)
        if tensor.is_floating_point()
    }


def _moving(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a step changes."""
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return learning | batch_norm_statistics(module)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
