"""Action recognition: clips, the recogniser, its training."""
