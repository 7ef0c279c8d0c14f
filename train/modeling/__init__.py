"""Features to predictions, as plain modules: pyramid, heads, points, losses, fusions."""
