"""Looking after a store: reading every checksum, what may go, freeing it."""
