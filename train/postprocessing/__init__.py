"""From raw predictions of windows to detections of whole videos, in the end or as frames arrive."""
