"""What depends on the device: its clock, and compiled networks."""
