"""Activations at any cut: from the cache if it is true, else computed and stored."""

from extract.activations.activations import Activations
from extract.activations.stored import Cached, Counts
from extract.settings.cache import CacheConfig

__all__ = ["Activations", "CacheConfig", "Cached", "Counts"]
