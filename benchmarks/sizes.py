"""Count weights and operations of every backbone size, on tensors that hold no numbers.

    python -m benchmarks.sizes [--markdown]

Weights: the transformer, its adapters where the published detectors have them, and the THUMOS-14
head. Operations: of one window's forward pass, a multiplication and an addition counting as two;
products and convolutions only, as in published figures.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.loader import load
from extract.backbone.adapters import TemporalAdapter
from extract.backbone.backbone import Backbone
from extract.settings.units import TUBELET
from train.config import Experiment
from train.modeling.actionformer import ActionFormer

HOME = Path(__file__).resolve().parent.parent / "configs/e2e"
CLASSES = 20
FILES = {  # published detectors; the long one of v2-g has fewer adapters
    "s": "thumos14/videomae_s_adapter_forward.yaml",
    "b": "thumos14/videomae_b_adapter_forward.yaml",
    "l": "thumos14/videomae_l_adapter_forward.yaml",
    "h": "thumos14/videomae_h_adapter_forward.yaml",
    "v2-g": "thumos14/videomaev2_g_adapter_forward.yaml",
    "v2-g, 1536 frames": "thumos14/videomaev2_g_1536_adapter_forward.yaml",
    "v2-g, 1536 frames, side": "thumos14/videomaev2_g_1536_side_forward.yaml",
}


@dataclass(frozen=True)
class Cost:
    """Weights, or operations, of a detector's parts."""

    transformer: int
    adapters: int
    head: int

    @property
    def total(self) -> int:
        """Of the whole detector."""
        return self.transformer + self.adapters + self.head


@cache
def experiment(size: str) -> Experiment:
    """Return the THUMOS-14 experiment of a size, with random weights.

    `tiny` is the demo's experiment with short windows, to try a script with.
    """
    none = "--backbone.weights=null"
    if size == "tiny":
        return load(Experiment, HOME / "demo/forward.yaml", [none, "--sampling.window_size=32"])
    return load(Experiment, HOME / FILES[size], [none])


def build_parts(size: str) -> tuple[Backbone, TemporalAdapter, ActionFormer]:
    """Return a size's transformer, one of its adapters, and its head, without numbers."""
    config = experiment(size)
    with torch.device("meta"):
        transformer = Backbone(replace(config.backbone, mode="frozen")).eval()
        adapter = TemporalAdapter(transformer.width, config.backbone.adapter_ratio)
        return transformer, adapter, ActionFormer(transformer.width, CLASSES, config.head).eval()


def count_weights(size: str) -> Cost:
    """Return the number of weights of a size."""
    transformer, adapter, head = (
        sum(p.numel() for p in part.parameters()) for part in build_parts(size)
    )
    return Cost(transformer, len(experiment(size).backbone.adapted_blocks) * adapter, head)


def count_forward_flops(size: str) -> Cost:
    """Return the number of operations of one window's forward pass."""
    transformer, adapter, head = build_parts(size)
    config, width = experiment(size), transformer.width
    frames, pixels = config.sampling.samples, config.pixels.size
    patches, steps = (pixels // config.backbone.trunk.patch) ** 2, config.sampling.window_size
    with torch.device("meta"):
        clip = torch.empty(1, 3, frames, pixels, pixels, dtype=torch.uint8)
        tokens = torch.empty(1, frames // TUBELET, patches, width)
        features, mask = torch.empty(1, width, steps), torch.ones(1, steps, dtype=torch.bool)
    with torch.no_grad():
        return Cost(
            transformer=count_flops(lambda: transformer(clip)),
            adapters=len(config.backbone.adapted_blocks) * count_flops(lambda: adapter(tokens)),
            head=count_flops(lambda: head(features, mask)),
        )


def count_flops(work: Callable[[], object]) -> int:
    """Return the number of operations of a function, backward passes included."""
    aten = torch.ops.aten
    # The counter takes the gradient of a depthwise convolution's weight for a full one's.
    own = {aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return counter.get_total_flops()


def _convolution_backward(
    gradient: torch.Size, inputs: torch.Size, weight: torch.Size, *_: object, **__: object
) -> int:
    """Return the operations of both gradients, each as many as the forward convolution's."""
    return 2 * 2 * gradient.numel() * weight[1:].numel()


def size_table() -> list[tuple[str, ...]]:
    """Return the lines, one for every size and window, under a header."""
    lines: list[tuple[str, ...]] = [
        (
            "VideoMAE",
            "width / depth / heads",
            "transformer",
            "adapters",
            "head",
            "window",
            "forward pass: transformer + adapters + head, TFLOP",
        )
    ]
    for size in FILES:
        config, count, cost = experiment(size), count_weights(size), count_forward_flops(size)
        trunk = config.backbone.trunk
        lines.append(
            (
                size.upper() if len(size) == 1 else size,
                f"{trunk.width} / {trunk.depth} / {trunk.heads}",
                f"{count.transformer / 1e6:.2f} M",
                f"{count.adapters / 1e6:.2f} M",
                f"{count.head / 1e6:.2f} M",
                f"{config.sampling.samples} × {config.pixels.size} px",
                f"{cost.total / 1e12:.2f} = {cost.transformer / 1e12:.2f} "
                f"+ {cost.adapters / 1e12:.2f} + {cost.head / 1e12:.2f}",
            )
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--markdown", action="store_true", help="as a table for docs/datasets.md")
    markdown = parser.parse_args().markdown
    header, *rows = size_table()
    if markdown:
        rows = [("---",) * len(header), *rows]
        for row in (header, *rows):
            print(f"| {' | '.join(row)} |")
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(map(str.ljust, row, widths)).rstrip())


if __name__ == "__main__":
    main()
