"""The curves of a run: metrics.jsonl, TensorBoard and other trackers."""
