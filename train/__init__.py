"""From features to a trained detector: head, targets, losses, loop."""
