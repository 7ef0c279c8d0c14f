"""The backbone of imported features, which other networks computed and a store holds."""

from typing import Any

from torch import Tensor, nn

from extract.backbone.backbone import PixelBackbone
from extract.settings.backbone import BackboneConfig, Cut

NO_PIXELS = "imported features cannot be computed from pixels"


class Imported(nn.Module):
    """The identity, or a linear layer from the imported width to the configured one.

    Args:
        config: of mode `imported`.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config, channels, width = config, config.imported_width, config.width
        assert channels is not None
        self.project = nn.Identity() if channels == width else nn.Linear(channels, width)

    def forward(self, x: Tensor, start: Cut | None = None, stop: Cut = "features") -> Tensor:
        """Map imported features [B, C, T] to [B, width, T].

        Raises:
            ValueError: `x` is pixels.
        """
        if start != "features" or stop != "features":
            raise ValueError(NO_PIXELS)
        features: Tensor = self.project(x.mT).mT
        return features


AnyBackbone = PixelBackbone | Imported


def require_pixels(backbone: AnyBackbone) -> PixelBackbone:
    """Return the backbone if it begins with pixels.

    Raises:
        ValueError: its features are imported.
    """
    if isinstance(backbone, Imported):
        raise ValueError(NO_PIXELS)
    return backbone


def imported_name(features: str, video: str) -> str:
    """Return the name in a store of a video's imported features, as opposed to its file."""
    return f"{features}/{video}"


def describe_imported(features: str, width: int) -> dict[str, Any]:
    """Return what the fingerprint hashes in place of the unknown network's settings and weights."""
    return {"imported": features, "width": width}
