"""Settings of frames, networks and the cache, in files that import nothing heavy."""
