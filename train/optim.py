"""Optimizer groups, the learning-rate schedule and the averaged weights."""

from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.optim import AdamW

from train.config import TrainingConfig
from train.detector import Detector


def build_optimizer(detector: Detector, config: TrainingConfig) -> AdamW:
    """AdamW with a learning rate each for head and backbone; no decay on biases, norms, scales."""
    groups = []
    for module, lr in ((detector.head, config.lr), (detector.backbone, config.backbone_lr)):
        for group in param_groups_weight_decay(module, config.weight_decay):
            if group["params"]:
                groups.append(group | {"lr": lr})
    return AdamW(groups)


def build_schedule(
    optimizer: AdamW, config: TrainingConfig, steps_per_epoch: int
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


def build_average(detector: Detector, config: TrainingConfig) -> ModelEmaV3:
    """Exponential moving average of what learns; what is frozen is shared, not copied."""
    average = ModelEmaV3(detector, decay=config.ema_decay)
    for mean, weight in zip(average.module.parameters(), detector.parameters(), strict=True):
        if not weight.requires_grad:
            mean.data = weight.data
    return average
