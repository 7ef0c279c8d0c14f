"""Activations at any cut: from the cache if it is true, else computed and stored."""

from extract.activations.activations import Activations, CacheConfig
from extract.activations.stored import Cached, Counts

__all__ = ["Activations", "CacheConfig", "Cached", "Counts"]
