"""What is wrong with a dataset, found before training."""
