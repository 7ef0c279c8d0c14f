"""Settings of the cache of activations; see `extract.activations`."""

from dataclasses import dataclass

from cache.dtypes import Dtype
from extract.settings.sampling import SpanKind


@dataclass(frozen=True)
class CacheConfig:
    """Which activations are stored, and where.

    Args:
        url: folder or fsspec URL of the store; null stores nothing.
        dtype: of the stored numbers; only float32 is exact.
        span: what heads are trained on: windows cut at random out of whole `video` spans, or the
            test plan's `window` spans that hold an action.
        blocks: cuts that are stored beside the features.
        flush_s: seconds of work that a kill may cost at most; 64 MB of activations are the other
            bound.
    """

    url: str | None = None
    dtype: Dtype = "float16"
    span: SpanKind = "video"
    blocks: tuple[int, ...] = ()
    flush_s: float = 30.0

    def __post_init__(self) -> None:
        if self.flush_s < 0:
            raise ValueError("cache.flush_s must not be negative")
