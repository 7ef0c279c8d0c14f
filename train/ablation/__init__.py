"""A grid of runs: its file, running it, its table and report."""
