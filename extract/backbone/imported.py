"""A backbone that is not here: features that other networks computed, out of a store."""

from typing import Any

from torch import Tensor, nn

from extract.backbone.backbone import BackboneConfig, Cut, PixelBackbone

NO_PIXELS = "imported features cannot be computed from pixels"


class Imported(nn.Module):
    """No network at all, or a linear one to the width of the backbone that is to follow.

    Args:
        config: of mode `imported`.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config, given, width = config, config.imported_width, config.width
        assert given is not None
        self.project = nn.Identity() if given == width else nn.Linear(given, width)

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
    """Return a backbone that begins with pixels.

    Raises:
        ValueError: its features are imported.
    """
    if isinstance(backbone, Imported):
        raise ValueError(NO_PIXELS)
    return backbone


def imported_name(features: str, video: str) -> str:
    """Return what a store calls a video's imported features, which are not its file's."""
    return f"{features}/{video}"


def about(features: str, width: int) -> dict[str, Any]:
    """Return what stands in for the settings and weights of a network that is not known here."""
    return {"imported": features, "width": width}
