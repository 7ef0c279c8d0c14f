"""A backbone that is not here: features that other networks computed, out of a store."""

from typing import Any

from torch import Tensor, nn

from extract.backbone.backbone import Backbone, BackboneConfig, Cut


class Imported(Backbone):
    """No network at all, or a linear one to the width of the backbone that is to follow.

    Args:
        config: of mode `imported`.
    """

    def __init__(self, config: BackboneConfig) -> None:
        nn.Module.__init__(self)  # nothing of a transformer
        self.config, given = config, config.imported_width
        assert given is not None
        self.project = nn.Identity() if given == self.width else nn.Linear(given, self.width)
        self.trunk = nn.Module()  # type: ignore[assignment]
        self.adapters, self.second, self.ladder = (nn.ModuleDict() for _ in range(3))  # type: ignore[assignment]

    def forward(self, x: Tensor, start: Cut | None = None, stop: Cut = "features") -> Tensor:
        """Map imported features [B, C, T] to [B, width, T].

        Raises:
            ValueError: `x` is pixels.
        """
        if start != "features" or stop != "features":
            raise ValueError("imported features cannot be computed from pixels")
        features: Tensor = self.project(x.mT).mT
        return features


def imported_name(features: str, video: str) -> str:
    """Return what a store calls a video's imported features, which are not its file's."""
    return f"{features}/{video}"


def about(features: str, width: int) -> dict[str, Any]:
    """Return what stands in for the settings and weights of a network that is not known here."""
    return {"imported": features, "width": width}
