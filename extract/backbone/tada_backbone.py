"""TAda2D as a backbone: clips of 16 frames, each by itself, to features per tubelet."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from extract.backbone.backbone import register_pixel_scale, split_for_cache
from extract.checkpoints.strict import Coverage
from extract.checkpoints.tensor_files import read_tensors
from extract.settings.backbone import BackboneConfig, Cut
from extract.settings.units import CLIP_FRAMES, TUBELET
from extract.tada.pretrained import load_tada_features, recognise_tada
from extract.tada.tada2d import TAda2D, TAda2DConfig, lift_resnet

IMAGE_TENSOR = "layer1.0.conv1.weight"  # only ResNets for images have it


class TAdaBackbone(nn.Module):
    """A TAda2D network in place of the transformer: one block, one position in space.

    It sees a clip at a time, as the transformer's attention does, so that spans of any length, both
    directions and the cache work alike. Running statistics of its norms stay as pretrained.

    Args:
        config: of network `tada2d`.
        trunk: of another backbone, to be shared.
    """

    ladder = None
    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, trunk: TAda2D | None = None) -> None:
        super().__init__()
        self.config = config
        if trunk is None:
            trunk = TAda2D(TAda2DConfig(1, config.tada.blocks, config.tada.width))
            trunk.classifier = nn.Identity()  # type: ignore[assignment]
        self.trunk = trunk
        trunk.requires_grad_(config.learns)
        register_pixel_scale(self, config)

    def train(self, mode: bool = True) -> "TAdaBackbone":
        """Set training mode, but not of batch norms: a few windows are too small a sample."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor, start: Cut | None = None, stop: Cut = "features") -> Tensor:
        """Map uint8 frames [B, 3, T, H, W] to features [B, C, T/2]; return features unchanged.

        Raises:
            ValueError: T is not a multiple of 16, or there is no such cut.
        """
        if start not in (None, "features") or stop != "features":
            raise ValueError(f"TAda2D has no cut between {start} and {stop}, only its features")
        return x if start == stop else self.pool(self.run_block(0, self.embed(x)))

    def embed(self, frames: Tensor) -> Tensor:
        """Return uint8 frames [B, 3, T, H, W] normalised.

        Raises:
            ValueError: T is not a multiple of 16.
        """
        if frames.shape[2] % CLIP_FRAMES:
            raise ValueError(
                f"{frames.shape[2]} frames do not divide into clips of {CLIP_FRAMES}; pad the span"
            )
        return (frames - self.mean).div_(self.std)

    def run_block(self, k: int, tokens: Tensor) -> Tensor:
        """Map normalised frames [B, 3, T, H, W] to one token a tubelet [B, T/2, 1, C].

        A tubelet's token is the mean of its frames' features.
        """
        clips = tokens.unflatten(2, (-1, CLIP_FRAMES)).transpose(1, 2).flatten(0, 1)
        done = torch.cat([self.trunk.features(part) for part in split_for_cache(clips)])
        pairs = done.unflatten(2, (-1, TUBELET)).mean(-1)
        return pairs.transpose(1, 2).unflatten(0, (len(tokens), -1)).flatten(1, 2).unsqueeze(2)

    def adapters_after(self, k: int) -> Sequence[nn.Module]:
        """Return an empty tuple: there are no adapters."""
        return ()

    def pool(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, T/2, 1, C] as features [B, C, T/2]."""
        return tokens.squeeze(2).transpose(1, 2)


def load_tada_trunk(trunk: TAda2D, source: str | Path) -> Coverage:
    """Load a pretrained TAda2D network, or lift a ResNet-50 for images, strictly.

    Raises:
        ValueError: the file cannot be read, or holds another network.
    """
    content = read_tensors(source)
    size = f"TAda2D of {sum(trunk.config.blocks)} blocks, {trunk.config.width} wide"
    if IMAGE_TENSOR in content.tensors:
        lift_resnet(trunk, content.tensors, source)
        used = [name for name in content.tensors if not name.startswith("fc.")]
        layout = "ResNet for images"
    else:
        found = recognise_tada(content, source)
        if found is None:
            raise ValueError(f"{source} holds neither a TAda2D network nor a ResNet for images")
        load_tada_features(trunk, source)
        used = [name for name in found.tensors if not name.startswith("classifier.")]
        layout = found.layout
    dropped = {
        name: "a classifier of whole clips"
        for name in content.tensors
        if name.startswith(("fc.", "head.", "classifier."))
    }
    return Coverage(content.name, content.files, layout, size, tuple(used), (), dropped)
