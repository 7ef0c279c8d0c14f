"""Files of weights in any project's layout: recognised, renamed, read without running code."""
