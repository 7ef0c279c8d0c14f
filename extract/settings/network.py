"""Settings of networks that recognise actions in clips; see `extract.tada.networks`."""

from dataclasses import dataclass
from typing import Literal

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
        check_below_one("network.dropout", self.dropout)
        check_below_one("network.drop_path", self.drop_path)


def check_below_one(name: str, probability: float) -> None:
    """Raise ValueError, which names the setting, unless a probability is below 1."""
    if not 0 <= probability < 1:
        raise ValueError(f"{name} is a probability below 1, not {probability}")
