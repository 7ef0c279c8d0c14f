"""A plain image network over the frames of a clip: a baseline that does not see time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from extract.checkpoints.strict import load_state_dict_strict
from extract.tada.conv import normalise_pixels


@dataclass(frozen=True)
class FrameResNetConfig:
    """Sizes of the network, by default those of ResNet-50; see `TAda2DConfig`."""

    classes: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    dropout: float = 0.5
    drop_path: float = 0.0


class FrameResNet(nn.Module):
    """A ResNet of timm run on every frame; the order of the frames changes nothing."""

    def __init__(self, config: FrameResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = tuple(config.width * 2**stage for stage in range(len(config.blocks)))
        self.resnet = ResNet(
            Bottleneck,  # type: ignore[arg-type]
            config.blocks,
            num_classes=0,
            stem_width=config.width,
            channels=channels,
            drop_path_rate=config.drop_path,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.resnet.num_features, config.classes)

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
            frames: uint8, RGB, or normalised as by `extract.tada.conv.normalise_pixels`.
        """
        length = frames.shape[2]
        x = normalise_pixels(frames).transpose(1, 2).flatten(0, 1)
        found: Tensor = self.resnet(x.contiguous(memory_format=torch.channels_last))
        return found.unflatten(0, (-1, length)).transpose(1, 2)


def load_image_resnet(
    network: FrameResNet, image: Mapping[str, Tensor], source: str | Path
) -> None:
    """Load a ResNet for images, as timm and torchvision name its tensors, but its classifier.

    Raises:
        ValueError: it is another ResNet than the network's.
    """
    own = network.resnet.state_dict().items()
    counters = {name: t for name, t in own if name.endswith("num_batches_tracked")}
    tensors = {name: t for name, t in image.items() if not name.startswith("fc.")}
    load_state_dict_strict(network.resnet, counters | tensors, source)
