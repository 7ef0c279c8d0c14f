"""Backbones, from pixels to features: their protocol, and VideoMAE with adapters over a span."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from extract.backbone.adapters import Ladder, TemporalAdapter
from extract.backbone.recompute import checkpointed
from extract.backbone.videomae import VideoMAE
from extract.layers.residual import drop_path
from extract.settings.backbone import BackboneConfig, Cut, Recompute
from extract.settings.units import CLIP_FRAMES, CLIP_STEPS, TUBELET

CPU_ELEMENTS = 2**20
"""Numbers that a CPU processes at a time: some clips, whose activations fit into its cache."""
GPU_ELEMENTS = 2**27
"""Numbers that a GPU takes through a block at a time where nothing waits for a backward pass."""


class PixelBackbone(Protocol):
    """A backbone that begins with pixels, whatever its network; `Backbone` is one.

    Attributes:
        ladder: adapters beside the network, if it has any there.
        mean: of pixels, on the network's device.
    """

    training: bool

    @property
    def config(self) -> BackboneConfig: ...

    @property
    def ladder(self) -> Ladder | None: ...

    @property
    def mean(self) -> Tensor: ...

    def state_dict(self, *, keep_vars: bool = ...) -> dict[str, Any]: ...

    def __call__(self, x: Tensor, start: Cut | None = ..., stop: Cut = ...) -> Tensor:
        """Run from pixels or from a cut to a cut; see `Backbone.forward`."""

    def embed(self, frames: Tensor) -> Tensor:
        """Return the first block's input for uint8 frames [B, 3, T, H, W]."""

    def run_block(self, k: int, tokens: Tensor) -> Tensor:
        """Return the tokens after block k, without its adapters [B, T/2, h·w, C]."""

    def adapters_after(self, k: int) -> Sequence[nn.Module]:
        """Return the adapters after block k, in their order: none, one or two."""

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the features [B, C, T/2]."""


class Backbone(nn.Module):
    """A transformer trunk and its adapters.

    Args:
        trunk: of another backbone, to be shared; None makes one: with random weights, or, if the
            config names a file, on the meta device until `load_state_dict_strict` fills it.

    Attributes:
        recompute: as the config has it; where that is `auto`, whoever trains chooses.
    """

    recompute: Recompute
    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, trunk: VideoMAE | None = None) -> None:
        super().__init__()
        self.config = config
        self.recompute = "none" if config.recompute == "auto" else config.recompute
        if trunk is None:
            # Random weights would take longer than reading those of the file.
            with torch.device("meta") if config.weights else nullcontext():
                trunk = VideoMAE(config.trunk)
        self.trunk = trunk
        width, ratio, second = config.trunk.width, config.adapter_ratio, config.second_from_block
        beside = config.mode == "side"
        behind = () if beside else config.adapted_blocks
        self.adapters = nn.ModuleDict({str(k): TemporalAdapter(width, ratio) for k in behind})
        again = range(config.trunk.depth)[second:] if second is not None else ()
        self.second = nn.ModuleDict({str(k): TemporalAdapter(width, ratio) for k in again})
        self.ladder = Ladder(config.adapted_blocks, width, ratio) if beside else None
        first = config.first_trainable_block
        self.trunk.requires_grad_(config.mode == "full" and not first)
        for k, block in enumerate(self.trunk.blocks):
            block.requires_grad_(config.mode == "full" and k >= first)
        beside_it = self.ladder.adapters.items() if self.ladder is not None else ()
        for name, adapter in (*self.adapters.items(), *beside_it):
            adapter.requires_grad_(int(name) >= first and second is None)
        for name, adapter in self.second.items():
            adapter.requires_grad_(int(name) >= first)
        register_pixel_scale(self, config)

    @property
    def width(self) -> int:
        """Channels of a token and of the features."""
        return self.config.width

    def forward(self, x: Tensor, start: Cut | None = None, stop: Cut = "features") -> Tensor:
        """Return the activation at a cut, from pixels or from the activation at an earlier cut.

        Args:
            x: uint8 frames [B, 3, T, H, W] if `start` is None, else the activation at `start`.
            start: the cut at which `x` was taken; None for pixels.
            stop: the cut at which to stop.

        Returns:
            Tokens [B, T/2, h·w, C] for a block, those of n blocks [B, T/2, h·w, n·C] for a ladder,
            features [B, C, T/2] otherwise.

        Raises:
            ValueError: T is not a multiple of 16, or the cuts are out of order.
        """
        blocks, recompute = self.config.blocks_between(start, stop), self.recompute
        if start == stop:
            return x
        tokens = self.embed(x) if start is None else x
        beside: list[Tensor] = []
        changes: Tensor | None = None
        for k in blocks:
            tokens = self._run_layer(k, tokens)
            if self.ladder is None or k not in self.config.adapted_blocks:
                continue
            if stop == "ladder":
                beside.append(tokens)
            else:  # added up at once: a list of all blocks' tokens would take many gigabytes
                changes = self.ladder.add_change(changes, k, tokens, recompute)
        if beside:
            return torch.cat(beside, -1)
        if changes is not None:
            tokens = tokens + changes
        elif self.ladder is not None and start == "ladder":
            tokens = self.ladder(tokens, recompute)
        return self.pool(tokens) if stop == "features" else tokens

    def adapters_after(self, k: int) -> list[nn.Module]:
        """Return the adapters after block k, in their order: none, one or two."""
        name = str(k)
        return [adapters[name] for adapters in (self.adapters, self.second) if name in adapters]

    def embed(self, frames: Tensor) -> Tensor:
        """Return the tokens [B, T/2, h·w, C] before block 0 for uint8 frames [B, 3, T, H, W]."""
        batch, length = len(frames), frames.shape[2]
        if length % CLIP_FRAMES:
            raise ValueError(
                f"{length} frames do not divide into clips of {CLIP_FRAMES}; pad the span"
            )
        clips = frames.unflatten(2, (-1, CLIP_FRAMES)).transpose(1, 2).flatten(0, 1)
        keeps = torch.is_grad_enabled() and self.trunk.patch_embed.weight.requires_grad
        with torch.set_grad_enabled(keeps):
            parts = split_for_cache(clips, keeps)
            done = [self.trunk.embed(part, (self.mean, self.std)) for part in parts]
        tokens = done[0] if len(done) == 1 else torch.cat(done)
        return tokens.view(batch, length // TUBELET, -1, tokens.shape[-1])

    def run_block(self, k: int, tokens: Tensor) -> Tensor:
        """Map tokens [B, T/2, h·w, C] to the same shape: block k, without its adapter.

        Attention sees one clip; the adapter mixes across clips over the whole span.
        """
        clips, block = _clips_of(tokens), self.trunk.blocks[k]
        keeps = torch.is_grad_enabled() and (self._learns(k) or clips.requires_grad)
        shares = split_for_cache(clips, keeps)
        scale = self._draw_scale(k, clips)
        scales: Sequence[Tensor | None] = [None] * len(shares)
        if scale is not None:
            scales = scale.split([len(part) for part in shares])
        recompute = self.recompute if keeps else "none"
        done = [
            checkpointed(block, recompute, *inputs) for inputs in zip(shares, scales, strict=True)
        ]
        return (done[0] if len(done) == 1 else torch.cat(done)).view_as(tokens)

    def _run_layer(self, k: int, tokens: Tensor) -> Tensor:
        """Map tokens [B, T/2, h·w, C] to the same shape: block k and its adapters."""
        adapters, recompute = self.adapters_after(k), self.recompute
        clips, shape = _clips_of(tokens), tokens.shape
        passes_back = tokens.requires_grad or self._learns(k)
        # Where clips run in shares, each is recomputed by itself: it then fits into the cache.
        together = passes_back and len(split_for_cache(clips)) == 1
        if recompute == "none" or not adapters or not together:
            tokens = self.run_block(k, tokens)
            for adapter in adapters:
                tokens = adapter(tokens, recompute)
            return tokens

        # Quoted: torch 2.9, compiling, cannot make a type that is a union.
        def layer(clips: Tensor, scale: "Tensor | None") -> Tensor:
            done: Tensor = self.trunk.blocks[k](clips, scale).view(shape)
            for adapter in adapters:
                done = adapter(done)
            return done

        # Together they keep their input alone; outside, an adapter would keep its own, too.
        return checkpointed(layer, recompute, clips, self._draw_scale(k, clips))

    def _learns(self, k: int) -> bool:
        return self.config.mode == "full" and k >= self.config.first_trainable_block

    def _draw_scale(self, k: int, clips: Tensor) -> Tensor | None:
        """Return the factors of a block's branches [N, 2, 1, 1] (drop path); None for 1.

        They are drawn for all clips at once, outside of the part that may be recomputed.
        """
        rate = self.trunk.drop_rates[k]
        # Beside a ladder the transformer runs as in eval mode.
        learns = self.config.mode != "side" and k >= self.config.first_trainable_block
        if not (self.training and rate and learns):
            return None
        ones = torch.ones(2 * len(clips), 1, 1, device=clips.device)
        return drop_path(ones, rate, True).unflatten(0, (-1, 2))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, T/2, h·w, C] averaged over space: features [B, C, T/2]."""
        return tokens.mean(2).transpose(1, 2)


def register_pixel_scale(backbone: nn.Module, config: BackboneConfig) -> None:
    """Register mean and std of pixels as buffers, so that they are on the network's device."""
    for name, values in (("mean", config.mean), ("std", config.std)):
        scale = torch.tensor(values).view(1, 3, 1, 1, 1)
        backbone.register_buffer(name, scale, persistent=False)


def _clips_of(tokens: Tensor) -> Tensor:
    """Return tokens [B, T/2, h·w, C] as those of clips [B·T/16, 8·h·w, C]."""
    return tokens.unflatten(1, (-1, CLIP_STEPS)).flatten(0, 1).flatten(1, 2)


def split_for_cache(clips: Tensor, keeps: bool = True) -> Sequence[Tensor]:
    """Return [N, …] split into parts that fit into a CPU's cache.

    Args:
        keeps: on a GPU, do not split: what is computed stays for a backward pass in any case.
    """
    cpu = runs_on_cpu(clips)
    if keeps and not cpu:
        return [clips]
    most = CPU_ELEMENTS if cpu else GPU_ELEMENTS
    return clips.split(max(1, most // max(clips[0].numel(), 1)))


def runs_on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on a CPU."""
    return tensor.device.type == "cpu"
