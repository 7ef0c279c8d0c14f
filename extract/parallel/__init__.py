"""What runs side by side: loader workers, a device and what is copied to it, a run's processes."""
