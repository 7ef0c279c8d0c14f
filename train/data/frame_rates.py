"""Videos whose frames come at another rate than those that a detector was trained on."""

from collections.abc import Iterable, Mapping, Sequence

from configs.messages import truncated
from extract.settings.sampling import SamplingConfig
from train.data.items import VideoItem

SAME_RATE_RATIO = 1.1  # rates that differ by a larger factor count as different


def frame_rate_range(items: Sequence[VideoItem]) -> tuple[float, float]:
    """Return the lowest and the highest rate of videos."""
    rates = [item.fps for item in items]
    return min(rates), max(rates)


def join_ranges(
    ranges: Iterable[tuple[float, float] | None],
) -> tuple[float, float] | None:
    """Return the lowest and the highest rate of several trainings; None if none is known."""
    known = [each for each in ranges if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def is_like(fps: float, trained: tuple[float, float]) -> bool:
    """Return whether a rate is one of those from the lowest to the highest in training."""
    low, high = trained
    return low / SAME_RATE_RATIO <= fps <= high * SAME_RATE_RATIO


def format_rates(trained: tuple[float, float]) -> str:
    """Return the lowest and the highest rate, or the only one."""
    low, high = trained
    return f"{low:.4g}" if high / low < 1.01 else f"{low:.4g} to {high:.4g}"


def describe_unlike_rates(
    videos: Mapping[str, float],
    trained: tuple[float, float] | None,
    sampling: SamplingConfig,
    imported: bool = False,
) -> str | None:
    """Return a warning that names videos of other rates than the training videos', or None.

    It matters where steps are counted in frames alone.

    Args:
        videos: the rate of each.
        trained: the training videos' lowest and highest rate; None if unknown.
        imported: features are read, whose pace was chosen when they were made.
    """
    if trained is None or sampling.fps is not None or sampling.method == "resize":
        return None
    low, high = trained
    unlike = {name: fps for name, fps in videos.items() if not is_like(fps, trained)}
    if not unlike:
        return None
    names = ", ".join(truncated([f"{name} ({fps:.4g})" for name, fps in unlike.items()]))
    samples = (low * high) ** 0.5 / sampling.sample_step
    remedy = f"Set --sampling.fps {samples:.4g} to take frames"
    if imported:
        remedy = "Make and import their features anew, from frames"
    return (
        f"warning: {len(unlike)} of {len(videos)} videos have frame rates other than the "
        f"{format_rates(trained)} per second that the detector was trained on, and it counts time "
        f"in frames: {names}. {remedy} at the training videos' pace"
    )
