"""From pixels to features: the VideoMAE trunk with its adapters, run over a whole span."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from extract.adapters import TemporalAdapter
from extract.videomae import CLIP_FRAMES, CLIP_STEPS, TUBELET, TrunkConfig, VideoMAE

Cut = int | Literal["features"]
"""Where an activation is taken: behind block k and its adapter, or the features at the end."""

Mode = Literal["adapter", "frozen", "full"]


@dataclass(frozen=True)
class BackboneConfig:
    """What runs over the pixels and which part of it learns.

    Args:
        trunk: sizes of the transformer.
        mode: `adapter` trains one adapter behind every block of a frozen transformer, `frozen`
            trains nothing, `full` trains the transformer and has no adapters.
        weights: checkpoint of the pretrained transformer; None starts from random weights.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        mean, std: pixel normalisation, RGB, 0 to 255.
        adapter_ratio: hidden width of an adapter over the trunk's width.
    """

    trunk: TrunkConfig
    mode: Mode = "adapter"
    weights: str | None = None
    activation_checkpointing: bool = False
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    adapter_ratio: float = 0.25

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"backbone.std must be above 0, not {self.std}")
        if int(self.trunk.width * self.adapter_ratio) < 1:
            raise ValueError(f"backbone.adapter_ratio {self.adapter_ratio} leaves no channel")


class Backbone(nn.Module):
    """A transformer trunk and its adapters; both are plain attributes, so a trunk can be shared."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = VideoMAE(config.trunk)
        count = config.trunk.depth if config.mode == "adapter" else 0
        self.adapters = nn.ModuleList(
            TemporalAdapter(config.trunk.width, config.adapter_ratio) for _ in range(count)
        )
        self.trunk.requires_grad_(config.mode == "full")
        shape = (1, 3, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(shape), persistent=False)

    @property
    def width(self) -> int:
        """Channels of a token and of the features."""
        return self.config.trunk.width

    def forward(self, x: Tensor, start: Cut | None = None, stop: Cut = "features") -> Tensor:
        """Run from pixels or from a cut to a cut.

        Args:
            x: uint8 frames [B, 3, T, H, W] where `start` is None, else the activation at `start`.
            start: the block behind which `x` was taken; None for pixels.
            stop: the block behind which to stop, or `features`.

        Returns:
            Tokens [B, T/2, h·w, C] for a block, features [B, C, T/2] otherwise.

        Raises:
            ValueError: T is no multiple of 16, or the cuts are out of order.
        """
        depth = self.config.trunk.depth
        first = 0 if start is None else depth if start == "features" else start + 1
        last = depth if stop == "features" else stop + 1
        if not 0 <= first <= last <= depth:
            raise ValueError(f"cannot run from cut {start} to cut {stop} of {depth} blocks")
        tokens = self.embed(x) if start is None else x
        for k in range(first, last):
            tokens = self._block(k, tokens)
        if stop == "features" and start != "features":
            return tokens.mean(2).transpose(1, 2)
        return tokens

    def embed(self, frames: Tensor) -> Tensor:
        """Turn uint8 frames [B, 3, T, H, W] into tokens [B, T/2, h·w, C] before block 0."""
        batch, channels, length, height, width = frames.shape
        if length % CLIP_FRAMES:
            raise ValueError(
                f"{length} frames do not divide into clips of {CLIP_FRAMES}; pad the span"
            )
        pixels = (frames - self.mean) / self.std
        clips = pixels.view(batch, channels, -1, CLIP_FRAMES, height, width).transpose(1, 2)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mode == "full"):
            tokens = self.trunk.embed(clips.flatten(0, 1))
        return tokens.view(batch, length // TUBELET, -1, tokens.shape[-1])

    def _block(self, k: int, tokens: Tensor) -> Tensor:
        if self.config.activation_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._run_block, k, tokens, use_reentrant=False)
            return result
        return self._run_block(k, tokens)

    def _run_block(self, k: int, tokens: Tensor) -> Tensor:
        batch, steps, places, width = tokens.shape
        clips = tokens.reshape(-1, CLIP_STEPS * places, width)
        tokens = self.trunk.blocks[k](clips).view(batch, steps, places, width)
        # Attention sees one clip; the adapter looks across clips over the whole span.
        return self.adapters[k](tokens) if len(self.adapters) else tokens
