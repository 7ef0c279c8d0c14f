"""Two streams, one result: fusions of predictions, point by point, and of features.

A stream predicts in its own time; `extract.sampling.reversal` says which points of both meet, and
where. A fusion never starts worse than its parts: before training, those of predictions equal the
streams' aligned mean, those of features the first stream. What they learn is added to that and
begins at 0.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.sampling.reversal import find_partners, pair_points, reverse_distances, take_partners
from extract.settings.sampling import Pairing
from train.modeling.actionformer import ActionFormer, HeadOutput
from train.modeling.config import MIXING_METHODS, FusionConfig, HeadConfig

Layer = TypeVar("Layer", nn.Linear, nn.Conv3d)
SMALLEST = 1e-6  # overlap, and distance of a score from 1, so that logits stay finite


def align(
    other: HeadOutput, own: HeadOutput, reflection: Tensor | None, pairing: Pairing
) -> HeadOutput:
    """Return the other stream's predictions at the points of `own`; own's where none meets.

    Args:
        reflection: R of every window [B]; None where both streams have the same direction.
    """
    if reflection is None:
        return other
    logits, distances = [], []
    for level, valid in enumerate(own.masks):
        total, offset = pair_points(reflection, 2**level, valid.sum(-1), pairing)
        partner, met = find_partners(total, valid)
        met = met.unsqueeze(1)
        logits.append(take_partners(other.logits[level], partner).where(met, own.logits[level]))
        moved = reverse_distances(take_partners(other.distances[level], partner), offset)
        distances.append(moved.where(met, own.distances[level]))
    return HeadOutput(tuple(logits), tuple(distances), own.masks)


class PredictionFusion(nn.Module):
    """A fusion of both streams' predictions, once in the time of each.

    Swapping the streams, and the video's direction with them, swaps the results.

    Args:
        config: the method.
        points: how many points each level has.
        classes: number of classes K.
    """

    def __init__(self, config: FusionConfig, points: Sequence[int], classes: int) -> None:
        super().__init__()
        self.config = config
        self.mix: PointMixer | ClassWeights | None = None
        if config.method in MIXING_METHODS:
            self.mix = PointMixer(config, points)
        elif config.method == "calibrated":
            self.mix = ClassWeights(classes)

    def forward(
        self, first: HeadOutput, second: HeadOutput, reflection: Tensor | None
    ) -> tuple[HeadOutput, HeadOutput]:
        """Return the fused predictions at the points of the first stream and of the second.

        Args:
            reflection: R of every window [B]; None where both streams have the same direction.
        """
        return (
            self.fuse(first, second, reflection, 0),
            self.fuse(second, first, reflection, 1),
        )

    def fuse(
        self, own: HeadOutput, other: HeadOutput, reflection: Tensor | None, stream: int
    ) -> HeadOutput:
        """Return the fused predictions at the points of `own`, which is stream 0 or 1."""
        other = align(other, own, reflection, self.config.pairing)
        mean = HeadOutput(
            tuple((a + b) / 2 for a, b in zip(own.logits, other.logits, strict=True)),
            tuple((a + b) / 2 for a, b in zip(own.distances, other.distances, strict=True)),
            own.masks,
        )
        fused: HeadOutput = mean if self.mix is None else self.mix(own, other, mean, stream)
        return weigh_by_agreement(fused, own, other) if self.config.agreement else fused


def weigh_by_agreement(fused: HeadOutput, one: HeadOutput, other: HeadOutput) -> HeadOutput:
    """Return `fused` with scores times the temporal IoU of the segments of two at its points."""
    logits = []
    for score, a, b in zip(fused.logits, one.distances, other.distances, strict=True):
        shared = torch.minimum(a, b).sum(1, keepdim=True).clamp(min=0)
        overlap = shared / torch.maximum(a, b).sum(1, keepdim=True).clamp(min=SMALLEST)
        exact = torch.promote_types(score.dtype, torch.float32)
        log_p = F.logsigmoid(score.to(exact)) + overlap.to(exact).clamp(min=SMALLEST).log()
        logits.append(log_p - torch.log(-torch.expm1(log_p).clamp(max=-SMALLEST)))
    return fused._replace(logits=tuple(logits))


class PointMixer(nn.Module):
    """Layers over the points of both streams, added to their mean (Experiments 3-1 to 3-3).

    Args:
        config: `method` and `axis`.
        points: how many points each level has.
    """

    def __init__(self, config: FusionConfig, points: Sequence[int]) -> None:
        super().__init__()
        self.config, self.points = config, tuple(points)
        lengths = self.points if config.axis == "level" else (sum(self.points),)
        self.time = nn.ModuleList(_zero(nn.Linear(2 * n, n, bias=False)) for n in lengths)
        self.planes = (
            _zero(nn.Conv3d(1, 1, (2, 3, 3), padding=(0, 1, 1), bias=False))
            if config.method == "fc_conv"
            else None
        )

    def forward(
        self, own: HeadOutput, other: HeadOutput, mean: HeadOutput, stream: int
    ) -> HeadOutput:
        """Return predictions at own's points, from those of both streams there."""
        masks = self._parts(own.masks)
        logits = self._parts(mean.logits)
        distances = self._parts(mean.distances)
        # Values at padding are no predictions and must not be mixed into any.
        scores = [self._masked(output.logits, masks) for output in (own, other)]
        bounds = [self._masked(output.distances, masks) for output in (own, other)]
        for part, layer in enumerate(self.time):
            seen = torch.cat([stream[part] for stream in bounds], -1)
            if self.config.method == "fc":
                seen = torch.cat([seen, torch.cat([s[part] for s in scores], -1)], 1)
            # Adam moves every weight alike: a sum over 2N of them would jump 2N times as far.
            found = layer(seen) / seen.shape[-1]
            distances[part] = distances[part] + found[:, :2]
            if self.config.method == "fc":
                logits[part] = logits[part] + found[:, 2:]
            elif self.planes is not None:
                planes = torch.stack([s[part] for s in scores], 1).unsqueeze(1)
                found = self.planes(planes) / self.planes.weight.numel()
                logits[part] = logits[part] + found[:, 0, 0]
        return HeadOutput(self._levels(logits), self._levels(distances), own.masks)

    def _parts(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return list(levels) if self.config.axis == "level" else [torch.cat(levels, -1)]

    def _masked(self, levels: tuple[Tensor, ...], masks: list[Tensor]) -> list[Tensor]:
        parts = zip(self._parts(levels), masks, strict=True)
        return [part.where(mask.unsqueeze(1), 0.0) for part, mask in parts]

    def _levels(self, parts: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(parts) if self.config.axis == "level" else parts[0].split(self.points, -1)


class ClassWeights(nn.Module):
    """Weights of both streams' class scores, class by class; boundaries are the mean's.

    Fitted, not trained by gradients (`train.detector.calibrate`).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, classes), 0.5), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)

    def forward(
        self, own: HeadOutput, other: HeadOutput, mean: HeadOutput, stream: int
    ) -> HeadOutput:
        """Return predictions at the points of `own`, which is stream 0 or 1."""
        mine, others, bias = (
            tensor[:, None] for tensor in (self.weight[stream], self.weight[1 - stream], self.bias)
        )
        logits = zip(own.logits, other.logits, strict=True)
        return mean._replace(logits=tuple(a * mine + b * others + bias for a, b in logits))


class FeatureFusion(nn.Module):
    """A fusion of both streams' features, with a head of its own.

    Args:
        config: the method.
        width: channels C of the features; `classes`: number of classes; `head`: sizes of the head.
    """

    def __init__(self, config: FusionConfig, width: int, classes: int, head: HeadConfig) -> None:
        super().__init__()
        self.method = config.method
        self.join: Gate | Lookup | None = None
        if config.method == "gated":
            self.join = Gate(width)
        elif config.method == "attention":
            self.join = Lookup(width, math.gcd(head.heads, width))
        channels = 2 * width if config.method == "early" else width
        # It learns, also where the streams' heads are frozen.
        self.head = ActionFormer(channels, classes, replace(head, learns=True))

    def start_from(self, head: ActionFormer) -> None:
        """Initialise the head from the first stream's, which does not see the second's features."""
        state = dict(head.state_dict())
        if self.method == "early":
            name = "embed.0.conv.weight"
            state[name] = torch.cat([state[name], torch.zeros_like(state[name])], 1)
        self.head.load_state_dict(state)

    def forward(
        self, first: Tensor, second: Tensor, mask: Tensor, reflection: Tensor | None
    ) -> HeadOutput:
        """Return predictions at the points of the first stream.

        Args:
            first, second: features [B, C, T] of each stream in its own time.
            mask: bool [B, T].
            reflection: R of every window [B]; None where both streams have the same direction.
        """
        if reflection is not None:
            # Step by step the same frames, also where a step has several.
            second = take_partners(second, find_partners(mask.sum(-1) - 1, mask)[0])
        if self.join is None:
            joined = torch.cat([first, second], 1)
        else:
            joined = self.join(first, second, mask)
        output: HeadOutput = self.head(joined, mask)
        return output


class Gate(nn.Module):
    """The first features plus a projection of the second, gated by both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.value = _zero(nn.Linear(width, width, bias=False))

    def forward(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """Map features [B, C, T] and [B, C, T] to [B, C, T]."""
        gate = torch.sigmoid(self.gate(torch.cat([first, second], 1).mT))
        return first + (gate * self.value(self.norm(second.mT))).mT


class Lookup(nn.Module):
    """Cross-attention from every step of the first stream to the second.

    Heads prefer near steps, each to another degree (ALiBi: Press et al., ICLR 2022).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = _zero(nn.Linear(width, width, bias=False))

    def forward(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """Map features [B, C, T] and [B, C, T] to [B, C, T]; mask [B, T] is true where valid."""
        own, other = (norm(x.mT) for norm, x in zip(self.norms, (first, second), strict=True))
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(own), self.key(other), self.value(other))
        )
        steps = torch.arange(first.shape[-1], device=first.device)
        slopes = 2.0 ** (-8.0 / self.heads * torch.arange(1, self.heads + 1, device=first.device))
        near = -slopes[:, None, None] * (steps[:, None] - steps).abs()  # [heads, T, T]
        bias = near.masked_fill(~mask[:, None, None], -torch.inf).to(query.dtype)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return first + self.out(found.transpose(1, 2).flatten(2)).mT


def _zero(layer: Layer) -> Layer:
    """Return a layer with zero weights, which at first adds nothing."""
    nn.init.zeros_(layer.weight)
    return layer
