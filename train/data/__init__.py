"""The videos of a subset, and windows of them as batches, decoded or cached."""
