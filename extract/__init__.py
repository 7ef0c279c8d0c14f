"""From files to activations: decoding, sampling, both directions, the backbone and its weights."""
