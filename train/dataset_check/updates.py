"""Check of the number of updates that a run on these videos has."""

from collections.abc import Iterator

from train.data.loading import EpochSampler
from train.data.truth import without_short
from train.dataset_check.findings import Finding, FindingKind
from train.dataset_check.survey import Survey
from train.engine.lengths import resolve_lengths
from train.engine.optim import FEW_UPDATES, MORE_UPDATES

FEW_UPDATES_FINDING = FindingKind(
    "few updates",
    "warning",
    f"they may teach little: {MORE_UPDATES}",
)


def planned_updates(survey: Survey) -> tuple[int, int]:
    """Return how many updates an epoch has, and how many the whole run."""
    data, training = survey.config.data, survey.config.training
    learned = (without_short(item, data.min_share) for item in survey.items(data.train_subset))
    videos = sum(len(item.segments) > 0 for item in learned)
    updates = EpochSampler(videos, training.global_batch, 0, 1, training.seed).updates
    resolved, _ = resolve_lengths(training, updates)
    return updates, updates * resolved.last_epoch


def check_updates(survey: Survey) -> Iterator[Finding]:
    """Yield a finding if the run ends before it has learned much."""
    per_epoch, total = planned_updates(survey)
    if total < FEW_UPDATES:
        text = f"{per_epoch} an epoch make {total} in all; ordinary runs have thousands"
        yield Finding(FEW_UPDATES_FINDING, text, numbers={"per_epoch": per_epoch, "updates": total})
