"""A video file's frames, exact and in any order; which access to it can be trusted."""

from extract.video.index import VideoError
from extract.video.reader import VideoReader

__all__ = ["VideoError", "VideoReader"]
