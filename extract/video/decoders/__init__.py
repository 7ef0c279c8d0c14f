"""Frames of a file by one of three libraries, which all give the same."""
