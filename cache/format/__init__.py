"""The file format of activations: the journal, binary tables, zarr arrays, compaction."""
