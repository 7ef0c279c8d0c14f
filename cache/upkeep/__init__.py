"""Maintenance of a store: verifying every checksum, retention, pruning."""
