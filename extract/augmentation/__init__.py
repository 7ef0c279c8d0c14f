"""What changes the pixels of training windows, in batches on any device."""
