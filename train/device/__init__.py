"""What depends on the device: its clock, compiled networks, batches that are copied ahead."""
