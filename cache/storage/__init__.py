"""Storage of a store's bytes: local folders and fsspec URLs alike, leases, compression."""
