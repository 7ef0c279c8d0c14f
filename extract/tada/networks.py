"""Networks that recognise actions in clips, by their settings."""

from extract.settings.network import NetworkConfig
from extract.tada.convnext import TAdaConvNeXt, TAdaConvNeXtConfig
from extract.tada.frame_resnet import FrameResNet, FrameResNetConfig
from extract.tada.tada2d import TAda2D, TAda2DConfig

VideoNetwork = TAda2D | TAdaConvNeXt | FrameResNet


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
