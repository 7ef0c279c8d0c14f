"""The detector: streams and their fusion as one model; its training and evaluation."""

from train.detector.model import Detector
from train.postprocessing.live import LiveUpdate

__all__ = ["Detector", "LiveUpdate"]
