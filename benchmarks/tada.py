"""Time TAda2D ResNet-50 against the same network with plain convolutions.

    python -m benchmarks.tada
    python -m benchmarks.tada --frames 8 --size 224 --repeats 15

One forward pass of one clip in eval mode. The variants take turns in one process, so that other
load on the machine affects them alike; the ratios are medians over turns. `per frame` is the
formula as written: weights for every frame, as one convolution with a group for each.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.tada.conv import TAdaConv, average_over_time
from extract.tada.tada2d import Bottleneck, TAda2D, TAda2DConfig


class PlainBlock(nn.Module):
    """A block with a plain convolution, with or without the average over neighbours in time."""

    def __init__(self, block: Bottleneck, averages: bool) -> None:
        super().__init__()
        self.block, self.averages = block, averages

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map frames [B·T, C, H, W] as the block does with all factors 1."""
        block = self.block
        y = F.relu(block.reduce_norm(block.reduce(x)), inplace=True)
        y = block.adaptive.conv(y)
        if self.averages:
            y = block.norm(y) + block.average_norm(average_over_time(y, frames))
        else:
            y = block.norm(y)
        y = block.expand_norm(block.expand(F.relu(y, inplace=True)))
        return F.relu(y + block.shortcut(x), inplace=True)


class PerFrameConv(nn.Module):
    """A `TAdaConv` that makes weights for every frame."""

    def __init__(self, adaptive: TAdaConv) -> None:
        super().__init__()
        self.adaptive = adaptive

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Convolve frames [B·T, C, H, W] in one convolution of B·T groups."""
        conv, means = self.adaptive.conv, x.mean((-2, -1)).unflatten(0, (-1, frames))
        alpha = self.adaptive.route(means.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        weights = (alpha[:, None, :, None, None] * conv.weight).flatten(0, 1)
        side_by_side = x.contiguous().flatten(0, 1)[None]
        found = F.conv2d(side_by_side, weights, None, conv.stride, conv.padding, groups=len(x))
        found = found[0].unflatten(0, (len(x), -1))
        return found.contiguous(memory_format=torch.channels_last)


def build_variants() -> dict[str, TAda2D]:
    """Return four variants of the network, with the same weights."""
    networks: dict[str, TAda2D] = {}
    for way in ("TAda2D", "plain, averaged", "plain", "TAda2D, per frame"):
        torch.manual_seed(0)
        network = networks[way] = TAda2D(TAda2DConfig(classes=400)).eval()
        for stage in network.stages:
            assert isinstance(stage, nn.ModuleList)
            for k, block in enumerate(stage):
                assert isinstance(block, Bottleneck)
                nn.init.normal_(block.adaptive.route.up.weight, std=0.01)
                if way == "TAda2D, per frame":
                    block.adaptive = PerFrameConv(block.adaptive)  # type: ignore[assignment]
                elif way != "TAda2D":
                    stage[k] = PlainBlock(block, averages=way == "plain, averaged")
    return networks


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    clip = torch.randn(1, 3, args.frames, args.size, args.size)
    networks = build_variants()
    found = {way: network(clip) for way, network in networks.items()}  # touches fresh memory
    torch.testing.assert_close(found["TAda2D"], found["TAda2D, per frame"], rtol=1e-3, atol=1e-4)
    seconds: dict[str, list[float]] = {way: [] for way in networks}
    for _ in range(args.repeats):
        for way, network in networks.items():
            began = time.perf_counter()
            network(clip)
            seconds[way].append(time.perf_counter() - began)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.frames} frames of "
        f"{args.size} px, {args.repeats} turns"
    )
    print("| forward pass | seconds | of plain, averaged | of plain |\n|---|---|---|---|")
    for way, taken in seconds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(taken, seconds[base], strict=True))
            for base in ("plain, averaged", "plain")
        ]
        shown = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"| {way} | {statistics.median(taken):.3f} | {shown} |")


if __name__ == "__main__":
    main()
