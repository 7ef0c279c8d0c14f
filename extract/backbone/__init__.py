"""Backbones, from pixels to features and between any cuts: VideoMAE with adapters, or TAda2D."""

from extract.backbone.backbone import Backbone
from extract.settings.backbone import BackboneConfig, Cut

__all__ = ["Backbone", "BackboneConfig", "Cut"]
