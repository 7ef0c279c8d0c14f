"""What activations depend on, chained from cut to cut."""

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from cache.fingerprint import chain
from extract.backbone.backbone import ARITHMETIC, BackboneConfig, Cut
from extract.backbone.imported import AnyBackbone, about
from extract.sampling.transforms import PixelConfig

Precision = Literal["fp32", "bf16", "fp16"]


def settings(config: BackboneConfig, pixels: PixelConfig, precision: Precision) -> dict[str, Any]:
    """Return all that an activation depends on besides the frames and the weights, for JSON."""
    if config.mode == "imported":
        return about(str(config.imported), config.imported_width or 0)
    if config.network == "tada2d":
        trunk = {"network": config.network, **asdict(config.tada)}
    else:
        trunk = asdict(config.trunk)
        del trunk["drop_path"]  # no part of a pass in eval mode
    taken = {"size": pixels.size, "take": "short side, centre"}
    if not pixels.antialias:  # named only then: caches from before this was a setting stay true
        taken["antialias"] = False
    return {
        "arithmetic": ARITHMETIC,
        "pixels": taken,
        "mean": list(config.mean),
        "std": list(config.std),
        "precision": precision,
        "trunk": trunk,
    }


def fingerprints(backbone: AnyBackbone, of: dict[str, Any]) -> dict[Cut, str]:
    """Return the fingerprint of every cut.

    Args:
        of: what `settings` returned.
    """
    if backbone.config.mode == "imported":  # of weights that nobody here knows
        return {"features": chain(of, [{}])[0]}
    depth, cuts = backbone.config.depth, backbone.config.cuts
    stages: dict[Cut, dict[str, Tensor]] = {k: {} for k in range(depth)}
    if "ladder" in cuts:  # other numbers than any other cut's, of the same weights
        stages["ladder"] = {"ladder.blocks": torch.tensor(backbone.config.adapted_blocks)}
    stages["features"] = {}
    for name, tensor in backbone.state_dict(keep_vars=True).items():
        part, number, *_ = *name.removeprefix("trunk.").split("."), ""
        block = int(number) if part in ("blocks", "adapters", "second") else 0
        stages["features" if part == "ladder" else block][name] = tensor
    names = dict(zip(stages, chain(of, stages.values()), strict=True))
    return {cut: names[cut] for cut in cuts}
