"""TAda2D: a ResNet over frames with temporally adaptive convolutions (Huang et al., ICLR 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extract.checkpoints.key_maps import IMAGE_RESNET, rename_key
from extract.checkpoints.strict import load_state_dict_strict
from extract.settings.network import check_below_one
from extract.tada.conv import TAdaConv, average_over_time, normalise_pixels, skip_clips

EXPANSION = 4  # channels of a block's output over those that its 3×3 convolution sees


@dataclass(frozen=True)
class TAda2DConfig:
    """Sizes of the network; by default those of ResNet-50.

    Args:
        classes: number of classes; of several tasks, all of them together.
        blocks: in each stage.
        width: channels of the stem, and of the 3×3 convolutions in the first stage; each further
            stage has twice as many as the one before.
        dropout: before the classifier.
        drop_path: stochastic depth of the last block; earlier ones rise linearly from 0.
    """

    classes: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    dropout: float = 0.5
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.classes < 1 or not self.blocks or min(self.blocks) < 1 or self.width < 4:
            raise ValueError(
                "TAda2D needs a class, a block in every stage and 4 channels, not "
                f"{self.classes} classes, blocks {self.blocks} and width {self.width}"
            )
        check_below_one("dropout", self.dropout)
        check_below_one("drop_path", self.drop_path)


class Bottleneck(nn.Module):
    """A residual block: 1×1, temporally adaptive 3×3 averaged over neighbours in time, 1×1.

    Args:
        inputs: channels that come in; `width`: of the 3×3 convolution.
        stride: of the 3×3 convolution and of the shortcut.
        drop: probability that a clip skips the block in training.
    """

    def __init__(self, inputs: int, width: int, stride: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        outputs = EXPANSION * width
        self.reduce = nn.Conv2d(inputs, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.adaptive = TAdaConv(nn.Conv2d(width, width, 3, stride, 1, bias=False))
        self.norm = nn.BatchNorm2d(width)
        self.average_norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, outputs, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map frames [B·T, C, H, W], T of them a clip, to frames [B·T, C', H', W']."""
        y = F.relu(self.reduce_norm(self.reduce(x)), inplace=True)
        y = self.adaptive(y, frames)
        y = self.norm(y) + self.average_norm(average_over_time(y, frames))
        y = self.expand_norm(self.expand(F.relu(y, inplace=True)))
        if self.training and self.drop:
            y = skip_clips(y, frames, self.drop)
        return F.relu(y + self.shortcut(x), inplace=True)


class TAda2D(nn.Module):
    """The network: frames -> features or class scores. Time keeps its length."""

    def __init__(self, config: TAda2DConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(len(config.blocks))]
        sizes = pairwise([width, *(EXPANSION * each for each in widths)])
        rates = iter(torch.linspace(0, config.drop_path, sum(config.blocks), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Bottleneck(outputs if k else inputs, each, 1 if k else 2, next(rates))
                for k in range(blocks)
            )
            for each, blocks, (inputs, outputs) in zip(widths, config.blocks, sizes, strict=True)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(EXPANSION * widths[-1], config.classes)
        _initialise(self)

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.classifier.in_features

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames as for `features` to class scores before the softmax [B, classes]."""
        return self.classifier(self.dropout(self.features(frames).mean(-1)))

    def features(self, frames: Tensor) -> Tensor:
        """Map frames [B, 3, T, H, W] to features averaged over space [B, C, T].

        Args:
            frames: uint8, RGB, or normalised as by `normalised`.
        """
        length = frames.shape[2]
        x = normalise_pixels(frames).transpose(1, 2).flatten(0, 1)
        # Channels last: several times faster on CPUs, and the layout of tensor cores.
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x, length)
        return x.mean((-2, -1)).unflatten(0, (-1, length)).transpose(1, 2)


def lift_resnet(network: TAda2D, image: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a ResNet for images, as timm and torchvision name its tensors, into a network, strictly.

    Its classifier is not loaded, and tensors that it lacks keep their values. In a new network
    these have no effect: a frame's output is the ResNet's, with stride 2 in the first block in
    place of max pooling.

    Args:
        source: where `image` is from, for messages.

    Raises:
        ValueError: it is not exactly the ResNet that the network is built on.
    """
    # Old files of torchvision lack the counters.
    kept = ("route.", "average_norm.", "classifier.", "num_batches_tracked")
    own = network.state_dict().items()
    lifted = {name: tensor for name, tensor in own if any(part in name for part in kept)}
    for name, tensor in image.items():
        if not name.startswith("fc."):
            lifted[rename_key(name, IMAGE_RESNET)] = tensor
    load_state_dict_strict(network, lifted, source)


def _initialise(network: TAda2D) -> None:
    """Initialise weights at random, as the published code does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, TAdaConv):
            # The published code has 6 axes [1, 1, C', C, 3, 3], so output channels count as inputs.
            bound = module.conv.weight.numel() ** -0.5
            nn.init.uniform_(module.conv.weight, -bound, bound)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.average_norm.weight)
