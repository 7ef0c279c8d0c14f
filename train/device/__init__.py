"""What depends on the device: its clock, its memory, and compiled networks."""
