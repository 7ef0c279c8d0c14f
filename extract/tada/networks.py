"""Networks that recognise actions in clips, by their settings."""

from dataclasses import dataclass
from typing import Literal

from extract.tada.convnext import TAdaConvNeXt, TAdaConvNeXtConfig
from extract.tada.frame_resnet import FrameResNet, FrameResNetConfig
from extract.tada.tada2d import TAda2D, TAda2DConfig

VideoNetwork = TAda2D | TAdaConvNeXt | FrameResNet
FEWEST_FRAMES = {"tada2d": 3, "tada_convnextv2": 5, "resnet": 1}


@dataclass(frozen=True)
class NetworkConfig:
    """Settings of a network: which one, its sizes and its initial weights.

    Args:
        name: `tada2d`, `tada_convnextv2`, or `resnet`, a plain image network over single frames.
        blocks: in each stage; (3, 4, 6, 3) is ResNet-50, (3, 3, 9, 3) ConvNeXt-T.
        width: channels of the first stage (of its 3×3 convolutions, for ResNets), 64 or 96 as
            published; each further stage has twice as many as the one before.
        dropout: before the classifier.
        drop_path: stochastic depth of the last block; earlier ones rise linearly from 0.
        weights: file of initial weights: of the TAdaConv project, a checkpoint of ours, or a ResNet
            for images with timm's and torchvision's names; null begins at random.
    """

    name: Literal["tada2d", "tada_convnextv2", "resnet"] = "tada2d"
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    dropout: float = 0.5
    drop_path: float = 0.0
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1 or self.width < 4 or self.width % 2:
            raise ValueError(
                "network.blocks needs a block in every stage, network.width an even number from 4 "
                f"on, not {self.blocks} and {self.width}"
            )
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"network.{name} is a probability below 1")


def build_network(config: NetworkConfig, classes: int) -> VideoNetwork:
    """Return a network with random weights for so many classes."""
    blocks, dropout, drop_path = config.blocks, config.dropout, config.drop_path
    match config.name:
        case "tada2d":
            return TAda2D(TAda2DConfig(classes, blocks, config.width, dropout, drop_path))
        case "resnet":
            return FrameResNet(FrameResNetConfig(classes, blocks, config.width, dropout, drop_path))
        case "tada_convnextv2":
            widths = tuple(config.width * 2**stage for stage in range(len(blocks)))
            return TAdaConvNeXt(TAdaConvNeXtConfig(classes, blocks, widths, drop_path, dropout))
