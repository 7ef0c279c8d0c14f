"""The identity of a file, whatever its name: its digest, remembered for the user."""
