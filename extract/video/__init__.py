"""Frames of a video file, exact and in any order, by the access that can be trusted with it."""

from extract.video.index import VideoError
from extract.video.reader import VideoReader

__all__ = ["VideoError", "VideoReader"]
