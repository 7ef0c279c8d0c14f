"""Settings of the head, and of the fusion of two streams."""

from dataclasses import dataclass
from typing import Literal

from extract.settings.sampling import Direction, Pairing


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of the head; the defaults are the ones published for THUMOS-14.

    Attributes:
        width: channels behind the first convolution.
        heads: attention heads; divides `width`.
        embed_convs: convolutions in front of the transformer.
        stem_blocks: transformer blocks at full resolution.
        levels: pyramid levels; each one halves the resolution of the level below.
        drop_path: probability of skipping a residual branch of a sample while training.
        tower_convs: convolutions in front of each of the two predictors.
        input_dropout: probability of blanking a feature channel of a window while training; the
            published runs on frozen features use 0.2.
        learns: false keeps the head as it is, in eval mode.
        attention_window: how many steps a step attends to; null for all. One for every level, or
            a list of one per level. The published runs on features of 2304 steps use 19.
        positions: add fixed sine-cosine positions behind the first convolutions, as the published
            runs on whole resized videos do.
        projection_dropout: probability of blanking a number behind a projection or an activation
            of the transformer while training.
    """

    width: int = 512
    heads: int = 4
    embed_convs: int = 2
    stem_blocks: int = 2
    levels: int = 6
    drop_path: float = 0.1
    tower_convs: int = 2
    input_dropout: float = 0.0
    learns: bool = True
    attention_window: int | tuple[int | None, ...] | None = None
    positions: bool = False
    projection_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "embed_convs", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"head: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("stem_blocks", "tower_convs"):
            if getattr(self, name) < 0:
                raise ValueError(f"head: {name} must not be negative, but is {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"head: width {self.width} is not a multiple of heads {self.heads}")
        for name in ("drop_path", "input_dropout", "projection_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"head: {name} must lie in [0, 1), but is {getattr(self, name)}")
        if len(self.attention_windows) != self.levels:
            raise ValueError(
                f"head: attention_window has {len(self.attention_windows)} values, but there are "
                f"{self.levels} levels; give one for each, or one for all"
            )
        for window in self.attention_windows:
            if window is not None and (window < 1 or not window % 2):
                raise ValueError(
                    f"head: attention_window {window} must be odd, with the step itself in the "
                    "middle, or null"
                )

    @property
    def attention_windows(self) -> tuple[int | None, ...]:
        """The number of steps that a step attends to, level by level."""
        given = self.attention_window
        return given if isinstance(given, tuple) else (given,) * self.levels


Method = Literal[
    "none",
    "average",
    "segments",
    "calibrated",
    "fc",
    "fc_conv",
    "fc_mean",
    "early",
    "gated",
    "attention",
]

FEATURE_METHODS: tuple[Method, ...] = ("early", "gated", "attention")

MIXING_METHODS: tuple[Method, ...] = ("fc", "fc_conv", "fc_mean")


@dataclass(frozen=True)
class FusionConfig:
    """Settings of the fusion of two streams.

    Args:
        method: `none` is one stream. Of predictions: `average` of scores and boundaries;
            `segments`, both streams' together before suppression; `calibrated`, scores weighted per
            class by logistic regression; a fully connected layer over the points of both streams
            for scores and distances (`fc`, Experiment 3-1), for distances beside a convolution over
            both streams' scores (`fc_conv`, 3-2) or beside their mean (`fc_mean`, 3-3). Of
            features: both side by side (`early`), the second through a gate (`gated`) or looked up
            by the first (`attention`).
        partner: direction of the second stream.
        pairing: which points meet, see `extract.sampling.reversal.Pairing`.
        axis: over which fully connected layers and the convolution run: the points of one `level`
            after another, or of `all` levels in a row.
        agreement: scores are multiplied by how far both streams' segments overlap at a point (their
            temporal IoU); for the methods `average` and `calibrated`.
    """

    method: Method = "none"
    partner: Direction = "reversed"
    pairing: Pairing = "nearest"
    axis: Literal["level", "all"] = "level"
    agreement: bool = False

    def __post_init__(self) -> None:
        if self.agreement and self.method not in ("average", "calibrated"):
            raise ValueError(
                "fusion.agreement weighs what fusion.method average or calibrated answers, not "
                f"{self.method}; set it to false"
            )
