"""A span of any length through the backbone, in memory that does not grow with it.

Attention reads one clip, an adapter one tubelet to each side. So after each block only the newest
clip has to wait for its next neighbour, together with one tubelet of the clip before. Clips pass
through the blocks as a wavefront, and each is computed once.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from extract.backbone.backbone import PixelBackbone
from extract.settings.backbone import Cut
from extract.settings.units import CLIP_FRAMES, CLIP_STEPS


class StreamingPass:
    """A pass over one span whose clips come in groups; equal to `Backbone.forward` on all of them.

    Args:
        backbone: in eval mode.
        cuts: whose activations are returned, at least one; no block after the last of them runs.
        start: the cut whose activation is pushed; None for uint8 frames.
        backwards: groups come from the end of the span to its beginning, each of them in the order
            of the span. One decode forward in time thus serves the reversed direction, too.

    Raises:
        ValueError: no cut, cuts out of order, or a backbone in training mode.
    """

    def __init__(
        self,
        backbone: PixelBackbone,
        cuts: Iterable[Cut],
        start: Cut | None = None,
        backwards: bool = False,
    ) -> None:
        self.backbone = backbone
        self.cuts = frozenset(cuts)
        self.start = start
        self.backwards = backwards
        self.pending: dict[nn.Module, Tensor] = {}
        """Per adapter the tokens that wait for it: at most 9 tubelets."""
        self._state: Literal["empty", "open", "closed"] = "empty"
        if not self.cuts:
            raise ValueError("name at least one cut where activations are wanted")
        if start == "features":
            raise ValueError("features are the last cut: no block runs after them")
        if backbone.training:
            raise ValueError("a span is run group by group in eval mode only; call .eval() first")
        self._blocks = max(
            (backbone.config.blocks_between(start, cut) for cut in self.cuts), key=len
        )

    @torch.no_grad()  # a graph would hold the whole span
    def push(self, group: Tensor) -> dict[Cut, Tensor]:
        """Return the activations that the next clips complete.

        Args:
            group: g ≥ 1 clips: uint8 frames [1, 3, 16·g, H, W], or tokens [1, 8·g, h·w, C], those
                of n blocks [1, 8·g, h·w, n·C] for a ladder.

        Returns:
            Per cut the next n tubelets: tokens [1, n, h·w, C] or features [1, C, n]. A cut where
            nothing is complete is absent. With `backwards` they precede the earlier ones.

        Raises:
            ValueError: the group does not consist of whole clips.
            RuntimeError: the span is finished, or a push has failed.
        """
        if self._state == "closed":
            raise RuntimeError("this span is over; start a new StreamingPass")
        pixels = self.start is None
        length, clip = (group.shape[2], CLIP_FRAMES) if pixels else (group.shape[1], CLIP_STEPS)
        if not length or length % clip:
            unit = "frames" if pixels else "tubelets"
            raise ValueError(f"{length} {unit} do not make whole clips of {clip}; pad the span")
        self._state = "closed"  # a failure leaves some blocks ahead of others
        found = self._run(self.backbone.embed(group) if pixels else group, last=False)
        self._state = "open"
        return found

    @torch.no_grad()
    def finish(self) -> dict[Cut, Tensor]:
        """Return the rest, as `push` does: the last clip has no neighbour to wait for.

        All pending clips run with it: after the last of n adapters up to n clips run together.

        Raises:
            RuntimeError: nothing was pushed, the span is finished already, or a push has failed.
        """
        if self._state == "empty":
            raise RuntimeError("nothing was pushed; a span holds at least one clip")
        if self._state == "closed":
            raise RuntimeError("this span is over; start a new StreamingPass")
        self._state = "closed"
        return self._run(None, last=True)

    def _run(self, tokens: Tensor | None, last: bool) -> dict[Cut, Tensor]:
        """Return the activations that are complete after each block has run on its new input."""
        found: dict[Cut, Tensor] = {}
        if tokens is not None and self.start in self.cuts:
            found[self.start] = tokens
        beside, ladder = list[Tensor](), self.backbone.ladder
        climbs = ladder is not None and "features" in self.cuts
        changes: Tensor | None = None
        for k in self._blocks:
            if tokens is not None:
                tokens = self.backbone.run_block(k, tokens)
            for adapter in self.backbone.adapters_after(k):
                tokens = self._adapt(adapter, adapter, tokens, last)
            if tokens is not None and k in self.cuts:
                found[k] = tokens
            if ladder is None or k not in self.backbone.config.adapted_blocks:
                continue
            if tokens is not None and "ladder" in self.cuts:
                beside.append(tokens)
            if climbs:
                add = partial(ladder.add_change, None, k)
                change = self._adapt(ladder.adapter_beside(k), add, tokens, last)
                changes = change if changes is None or change is None else changes + change
        if beside:
            found["ladder"] = torch.cat(beside, -1)
        if ladder is not None and climbs:
            # From its own cut it reads all blocks at once; else it only waits for the changes.
            run = ladder if self.start == "ladder" else nn.Identity()
            tokens = self._adapt(ladder, run, tokens, last)
            if tokens is not None and changes is not None:
                tokens = tokens + changes
        if tokens is not None and "features" in self.cuts:
            found["features"] = self.backbone.pool(tokens)
        return found

    def _adapt(
        self,
        adapter: nn.Module,
        run: Callable[[Tensor], Tensor],
        tokens: Tensor | None,
        last: bool,
    ) -> Tensor | None:
        """Return what an adapter gives for clips that have all neighbours; keep the newest clip.

        Args:
            run: the adapter, or what is wanted of it.
        """
        if tokens is None and not last:
            return None
        parts = [part for part in (self.pending.pop(adapter, None), tokens) if part is not None]
        available = torch.cat(parts[::-1] if self.backwards else parts, 1)
        # One tubelet of the clip before is context only; without one the adapter pads with zeros,
        # as it does at the ends of a whole span.
        context = available.shape[1] % CLIP_STEPS
        if last:
            return self._trim(run(available), context, 0)
        # A copy, not a view: it would keep the whole group in memory.
        self.pending[adapter] = self._trim(
            available, max(0, available.shape[1] - CLIP_STEPS - 1), 0
        ).clone()
        done = self._trim(run(self._trim(available, 0, CLIP_STEPS - 1)), context, 1)
        return done if done.shape[1] else None

    def _trim(self, tokens: Tensor, oldest: int, newest: int) -> Tensor:
        """Return [1, T, P, C] without so many tubelets that came first and that came last."""
        first, last = (newest, oldest) if self.backwards else (oldest, newest)
        return tokens[:, first : tokens.shape[1] - last]
