"""Where a store's bytes lie: local folders and fsspec URLs alike, leases, compression."""
