"""Settings of backbones; see `extract.backbone`."""

from dataclasses import dataclass, field
from typing import Literal

from extract.settings.network import check_below_one

Cut = int | Literal["ladder", "features"]
"""Where an activation is taken: after block k and its adapter; the inputs of a ladder; or the
features at the end."""

Mode = Literal["adapter", "frozen", "full", "side", "imported"]

NetworkKind = Literal["videomae", "tada2d"]

Recompute = Literal["none", "selective", "full"]
"""What is recomputed: `none`, all but attention (`selective`), or whole blocks (`full`)."""

RecomputeSetting = Literal["auto", "none", "selective", "full"]
"""The same, or what fits the device's memory (`auto`)."""

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Of forward passes. `fp32` is float32 to the last bit; `tf32` multiplies float32 with 10 bits of
mantissa on GPUs, several times as fast; the others are autocast's, and what they leave in float32
is as exact as with `fp32`."""


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the transformer; by default those of VideoMAE-S, which fits any GPU.

    Args:
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads; `width` must divide by it.
        mlp_ratio: hidden width of the MLP over `width`.
        patch: side of a spatial patch in pixels.
        image_size: side in pixels of the frames that the position table was made for.
        drop_path: stochastic depth of the last block; earlier ones rise linearly from 0.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    patch: int = 16
    image_size: int = 224
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"trunk.{name} must be at least 1, not {getattr(self, name)}")
        check_below_one("trunk.drop_path", self.drop_path)
        if self.width % self.heads:
            raise ValueError(f"trunk.width {self.width} does not divide by {self.heads} heads")
        if self.image_size % self.patch:
            raise ValueError(
                f"trunk.image_size {self.image_size} is not a multiple of trunk.patch {self.patch}"
            )


@dataclass(frozen=True)
class TAdaSize:
    """Sizes of TAda2D; by default those of ResNet-50 (extract/tada/tada2d.py).

    Args:
        blocks: in each stage.
        width: channels of the stem; the features have 4 · 2^(stages − 1) times as many.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    @property
    def features(self) -> int:
        """Channels of the features."""
        return 4 * self.width * 2 ** (len(self.blocks) - 1)


@dataclass(frozen=True)
class BackboneConfig:
    """Settings of the backbone, and which part of it is trained.

    Args:
        trunk: sizes of the transformer.
        network: `videomae`, the transformer, or `tada2d`, the convolutional network whose sizes
            are in `tada`: one block without adapters, frozen or trained in full.
        mode: `adapter` trains adapters after the blocks of a frozen transformer, `side` a ladder
            of them beside it, `frozen` trains nothing, `full` trains the transformer and has no
            adapters. With `imported` there is no network: features that other networks computed
            are read from the cache (extract/features.py), and mapped to the trunk's width if need
            be.
        weights: checkpoint of the pretrained transformer; None starts from random weights.
        recompute: activations that the backward pass computes again, to save memory (gradient
            checkpointing): those of whole blocks (`full`), all but attention (`selective`),
            `none`, or `auto`: the fewest of these with which a training step fits the device's free
            memory. The trained weights do not depend on it.
        trainable_from_block: blocks and adapters below this one are frozen and run in eval mode;
            at the trunk's depth, nothing but the head learns.
        mean, std: pixel normalisation, RGB, 0 to 255.
        adapter_ratio: hidden width of an adapter over the trunk's width.
        adapters_from_block: the first block that has an adapter; all after it have one, too.
        second_from_block: from this block on there is a second adapter after the first, and only
            the second ones are trained (Experiment 2); null has none.
        imported: the name that features were imported under; `imported_width`: their channels.
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    network: NetworkKind = "videomae"
    tada: TAdaSize = TAdaSize()
    mode: Mode = "adapter"
    weights: str | None = None
    recompute: RecomputeSetting = "auto"
    trainable_from_block: int = 0
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    adapter_ratio: float = 0.25
    adapters_from_block: int = 0
    second_from_block: int | None = None
    imported: str | None = None
    imported_width: int | None = None

    def __post_init__(self) -> None:
        given = self.imported is not None, (self.imported_width or 0) > 0
        if given != (self.mode == "imported",) * 2:
            raise ValueError(
                "backbone.mode imported goes with backbone.imported, the features' name, and "
                "backbone.imported_width, their channels; other modes have neither"
            )
        if min(self.std) <= 0:
            raise ValueError(f"backbone.std must be above 0, not {self.std}")
        if self.network == "tada2d" and (
            self.mode not in ("frozen", "full") or self.recompute not in ("auto", "none")
        ):
            raise ValueError(
                "backbone.network tada2d has no adapters and no recomputation: set "
                f"backbone.mode frozen or full, not {self.mode}, and backbone.recompute none"
            )
        if int(self.trunk.width * self.adapter_ratio) < 1:
            raise ValueError(f"backbone.adapter_ratio {self.adapter_ratio} leaves no channel")
        if not 0 <= self.adapters_from_block < self.depth:
            raise ValueError(
                f"backbone.adapters_from_block must be a block from 0 to {self.depth - 1}, "
                f"not {self.adapters_from_block}"
            )
        if not 0 <= self.trainable_from_block <= self.depth:
            raise ValueError(
                f"backbone.trainable_from_block must lie in 0 to {self.depth}, the number of "
                f"blocks, not {self.trainable_from_block}"
            )
        second = self.second_from_block
        if second is not None and (self.mode != "adapter" or not 0 <= second < self.depth):
            raise ValueError(
                "backbone.second_from_block needs backbone.mode adapter and a block from 0 to "
                f"{self.depth - 1}, not mode {self.mode} and block {second}"
            )

    @property
    def depth(self) -> int:
        """Blocks of the network."""
        return self.trunk.depth if self.network == "videomae" else 1

    @property
    def width(self) -> int:
        """Channels of a token and of the features."""
        return self.trunk.width if self.network == "videomae" else self.tada.features

    @property
    def first_trainable_block(self) -> int:
        """The first block that is trained, or whose adapter is; the depth if none is."""
        if self.mode in ("frozen", "imported"):
            return self.depth
        return max(self.trainable_from_block, self.second_from_block or 0)

    @property
    def learns(self) -> bool:
        """Whether any part of the backbone is trained."""
        return self.first_trainable_block < self.depth

    @property
    def last_frozen_cut(self) -> "Cut | None":
        """The last cut whose activations training does not change; None if all blocks learn."""
        first = self.first_trainable_block
        if not self.learns:
            return "features"
        if self.mode == "side":
            return "ladder" if first else None
        return first - 1 if first else None

    @property
    def adapted_blocks(self) -> range:
        """The blocks that have an adapter, after them or beside them."""
        count = self.depth if self.mode in ("adapter", "side") else 0
        return range(min(self.adapters_from_block, count), count)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """All cuts that a pass can start from or stop at, in its order."""
        if self.mode == "imported" or self.network == "tada2d":
            return ("features",)
        if self.mode == "side":  # a pass from after an adapted block lacks that input of the ladder
            return (*range(self.adapters_from_block), "ladder", "features")
        return (*range(self.depth), "features")

    def blocks_between(self, start: Cut | None, stop: Cut) -> range:
        """Return the blocks between two cuts; None stands for pixels.

        Raises:
            ValueError: the cuts are out of order.
        """
        cuts = (None, *self.cuts)
        if start not in cuts or stop not in cuts or cuts.index(start) > cuts.index(stop):
            raise ValueError(f"cannot run from cut {start} to cut {stop} of {self.depth} blocks")
        first = 0 if start is None else start + 1 if isinstance(start, int) else self.depth
        return range(first, stop + 1 if isinstance(stop, int) else self.depth)
