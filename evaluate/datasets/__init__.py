"""The annotation formats in which datasets are published, each turned into the same records."""
