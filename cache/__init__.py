"""The activation cache: what the backbone left behind, kept true."""
