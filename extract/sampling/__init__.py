"""Which frames of a video a network sees, in both directions, and what becomes of them."""
