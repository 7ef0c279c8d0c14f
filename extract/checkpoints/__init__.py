"""Files of weights in anybody's layout: recognised, renamed, read without running code."""
