"""Entries of a cache of activations: whether they are true, and reading outdated ones again."""
