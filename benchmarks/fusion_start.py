"""Why the first prediction fusions exploded: losses of differently started layers on real tensors.

    python -m benchmarks.fusion_start FORWARD.pt REVERSED.pt --cache URL

Takes what two trained streams predict in training windows and lets layers of Experiment 3-1 mix it:
as first tried, one random matrix over the points of all levels, unaligned, padding included; then
with one thing after another corrected. Each is trained for some steps at the same learning rate.
Prints the loss (per positive point) before any step and after 1, 10 and all.
"""

import argparse
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cache.store import open_cache
from train.config import Experiment, with_cache
from train.data.cached import ensure_cached, training_spans
from train.data.loading import EpochSampler
from train.data.truth import load_annotations
from train.data.videos import load_subsets
from train.data.windows import TrainingWindows, WindowInputs, training_loader
from train.detector.setup import activations_of
from train.detector.sources import build_detector, merge_configs
from train.engine.checkpoint import load_checkpoint
from train.modeling.actionformer import HeadOutput
from train.modeling.config import FusionConfig
from train.modeling.fusion import PredictionFusion, align
from train.modeling.losses import detection_losses, positive_points
from train.modeling.points import assign_batch, pyramid_mask, pyramid_points

STEPS = 60
Pair = tuple[HeadOutput, HeadOutput, Tensor]


class RandomMix(nn.Module):
    """Experiment 3-1 as first tried: a matrix of random weights over the joined time axis.

    Args:
        points: how many points each level has.
        halves: begin as the mean instead of at random.
        levels: one matrix for every level, not one for all.
        aligned: reverse the other stream's points and move its boundaries.
        blank: put zeros where padding is.
    """

    def __init__(
        self, points: list[int], levels: bool, aligned: bool, blank: bool, halves: bool
    ) -> None:
        super().__init__()
        self.points, self.levels, self.aligned, self.blank = points, levels, aligned, blank
        lengths = points if levels else [sum(points)]
        self.layers = nn.ModuleList(nn.Linear(2 * n, n) for n in lengths)
        for layer, n in zip(self.layers, lengths, strict=True):
            if halves:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                layer.weight.data = torch.cat([torch.eye(n), torch.eye(n)], 1) / 2

    def forward(self, first: HeadOutput, second: HeadOutput, reflection: Tensor) -> HeadOutput:
        if self.aligned:
            second = align(second, first, reflection, "nearest")
        else:  # only the roles are exchanged, as the description says
            second = second._replace(distances=tuple(d.flip(1) for d in second.distances))
        parts = []
        for output in (first, second):
            joined = [
                torch.cat(level, 1) for level in zip(output.distances, output.logits, strict=True)
            ]
            if self.blank:
                joined = [
                    x.where(m.unsqueeze(1), 0.0) for x, m in zip(joined, first.masks, strict=True)
                ]
            parts.append(joined if self.levels else [torch.cat(joined, -1)])
        mixed = [
            layer(torch.cat(both, -1)) for layer, *both in zip(self.layers, *parts, strict=True)
        ]
        if not self.levels:
            mixed = list(mixed[0].split(self.points, -1))
        return HeadOutput(
            tuple(x[:, 2:] for x in mixed), tuple(x[:, :2] for x in mixed), first.masks
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoints", nargs=2)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    sources = [(path, load_checkpoint(path, Experiment)) for path in args.checkpoints]
    config = merge_configs(None, sources, with_cache(["--fusion.method=average"], args.cache))
    accelerator = Accelerator(cpu=True)
    store = open_cache(args.cache)
    annotations = load_annotations(config.data)
    (items,) = load_subsets(
        config.data, annotations, [config.data.train_subset], accelerator, store
    )
    detector = build_detector(config, annotations.classes, sources).eval()
    activations = activations_of(detector, store, args.checkpoints)
    spans = [
        training_spans(items, config.sampling, d, config.cache.span) for d in config.directions
    ]
    cached, _ = ensure_cached(activations, spans, "features", [items], accelerator, 0)
    dataset = TrainingWindows(items, WindowInputs.of(config, cached))
    sampler = EpochSampler(len(dataset), config.training.global_batch, 0, 1, 0)
    loader = training_loader(dataset, sampler, 0)
    points = pyramid_points(config.sampling.window_size, config.head.levels, torch.device("cpu"))
    steps: list[tuple[Pair, Callable[[HeadOutput], Tensor]]] = []
    with torch.no_grad():
        while len(steps) < STEPS:
            for batch in loader:
                batch = batch.to(accelerator.device)
                features = detector.features(batch.inputs, batch.start)
                outputs = detector.outputs(features, batch.mask)
                targets = assign_batch(
                    points, batch.segments[0], batch.labels, len(detector.classes)
                )
                valid = pyramid_mask(batch.mask, config.head.levels)
                count = positive_points(targets, valid).sum().clamp(min=1)

                def loss(output: HeadOutput, targets=targets, count=count) -> Tensor:  # type: ignore[no-untyped-def]
                    return sum(detection_losses(output, targets)) / count

                steps.append(((*outputs, batch.reflection), loss))
            sampler.epoch += 1
    sizes = [config.sampling.window_size // 2**level for level in range(config.head.levels)]
    ways = {
        "one random matrix over all levels, unaligned": (False, False, False, False),
        "… with padding blanked": (False, False, True, False),
        "… aligned": (False, True, True, False),
        "… a matrix for every level": (True, True, True, False),
        "… which begins as the mean": (True, True, True, True),
    }
    print("| layer | first loss | after 1 | after 10 | last ten | largest |")
    print("|---|---|---|---|---|---|")
    for name, way in ways.items():
        torch.manual_seed(0)
        _report(name, RandomMix(sizes, *way), steps, args.lr)
    ours = PredictionFusion(FusionConfig(method="fc"), sizes, len(detector.classes))
    _report("ours: the mean and what the layer adds", ours, steps, args.lr)


def _report(
    name: str,
    module: nn.Module,
    steps: list[tuple[Pair, Callable[[HeadOutput], Tensor]]],
    lr: float,
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    losses = []
    for inputs, loss in steps:
        output = module(*inputs)
        value = loss(output[0] if isinstance(module, PredictionFusion) else output)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    chosen = [losses[0], losses[1], losses[10], sum(losses[-10:]) / 10, max(losses)]
    print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in chosen) + " |", flush=True)


if __name__ == "__main__":
    main()
