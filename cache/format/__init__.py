"""How activations lie in files: the journal, binary tables, zarr arrays, compaction."""
