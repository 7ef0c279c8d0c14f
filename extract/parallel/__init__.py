"""What runs side by side: loader workers and what they hand on, and a run's processes."""
