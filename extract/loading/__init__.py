"""Frames and batches that come from other processes."""
