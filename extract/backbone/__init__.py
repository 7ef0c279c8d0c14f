"""Pixels to features: VideoMAE with adapters, TAda2D in its place, from and to any cut."""

from extract.backbone.backbone import Backbone, BackboneConfig, Cut

__all__ = ["Backbone", "BackboneConfig", "Cut"]
