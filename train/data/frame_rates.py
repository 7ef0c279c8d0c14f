"""Videos whose frames come at another rate than those that a detector was trained on."""

from collections.abc import Sequence

from configs.messages import truncated
from extract.settings.sampling import SamplingConfig
from train.data.videos import VideoItem

SAME_RATE_RATIO = 1.1  # rates that differ by a larger factor count as different


def frame_rate_range(items: Sequence[VideoItem]) -> tuple[float, float]:
    """Return the lowest and the highest rate of videos."""
    rates = [item.fps for item in items]
    return min(rates), max(rates)


def describe_unlike_rates(
    items: Sequence[VideoItem], trained: tuple[float, float] | None, sampling: SamplingConfig
) -> str | None:
    """Return a warning that names videos of other rates than the training videos', or None.

    It matters where steps are counted in frames alone.

    Args:
        trained: the training videos' lowest and highest rate; None if unknown.
    """
    if trained is None or sampling.fps is not None or sampling.method == "resize":
        return None
    low, high = trained
    unlike = [
        item for item in items if not low / SAME_RATE_RATIO <= item.fps <= high * SAME_RATE_RATIO
    ]
    if not unlike:
        return None
    rates = f"{low:.4g}" if high / low < 1.01 else f"{low:.4g} to {high:.4g}"
    names = ", ".join(truncated([f"{item.name} ({item.fps:.4g})" for item in unlike]))
    samples = (low * high) ** 0.5 / sampling.sample_step
    return (
        f"warning: {len(unlike)} of {len(items)} videos have other frame rates than the {rates} "
        f"per second that the detector was trained on, and it counts time in frames: {names}. Set "
        f"--sampling.fps {samples:.4g} to take frames at the training videos' pace"
    )
