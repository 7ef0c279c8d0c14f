"""The detector: streams and their fusion as one model; its training and evaluation."""

from train.detector.model import Detector

__all__ = ["Detector"]
